"""Journals and evaluations are copied to an MLflow store, each once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from planer.errors import UserError
from planer.files import write_json
from planer.workflow import tracking
from planer.workflow.tracking.journal import Journal, journals
from planer.workflow.tracking.variants import figures
from planer.workflow.tracking.view import columns
from tests.tracking.records import evaluation, record, runs, series, synced
from tests.unit.made_up_arms import arm

ROOT = Path(__file__).parents[2]


def test_a_variant_is_a_run_with_figures_and_its_stages_are_child_runs(results):
    kept = results / "demo/target_0.5/model.safetensors"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"weights")
    record(results, artifact=kept)
    os.utime(kept, (1, 1))  # as Snakemake does
    record(results, variant="shared", stage="profile_blocks")
    record(results, variant="pysource", stage="prepare_data", experiment="data")
    write_json(results / "demo/target_0.5/eval.json", evaluation())
    (results / "demo/report.html").write_text("<p>report</p>")
    (results / "demo/figures").mkdir()
    (results / "demo/figures/pareto.svg").write_text("<svg/>")
    assert synced(results).troubles == []

    client, found = runs(results)
    assert set(found) == {"target_0.5", "target_0.5/retrain", "demo", "shared/profile_blocks"}
    variant, stage, whole = found["target_0.5"], found["target_0.5/retrain"], found["demo"]
    assert stage.data.tags["mlflow.parentRunId"] == variant.info.run_id
    assert found["shared/profile_blocks"].data.tags["mlflow.parentRunId"] == whole.info.run_id
    expected = [1.25, 1.6, 0.625, 0.5, 300, 200, 1000, 0.75]
    assert [variant.data.metrics[name] for name in columns("bpc")] == expected
    assert variant.data.tags["pattern"] == "(sf)x2"
    assert series(client, variant, "tau/bpc_test") == [(0, 1.25), (5, 1.255), (500, 1.75)]
    assert series(client, variant, "workload/speed_up") == [(0, 1.5), (1, 1.6)]
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    assert variant.info.start_time <= stage.info.start_time <= variant.info.end_time == stage.info.end_time
    assert stage.data.params == {"seed": "1"}
    assert series(client, stage, "loss") == [(0, 1.0), (1, 0.5), (2, 1 / 3)]
    folder = Path(stage.info.artifact_uri.removeprefix("file://"))
    assert folder.is_relative_to(results / "mlartifacts/demo")
    assert (folder / "model.safetensors").samefile(kept)
    assert {file.path for file in client.list_artifacts(whole.info.run_id)} == {"report.html", "figures"}
    assert {run.info.run_name for run in runs(results, "data")[1].values()} == {"data", "pysource/prepare_data"}

    again = synced(results)
    assert again.updated == again.troubles == [] and again.current == 3


def test_an_evaluation_without_journals_is_a_run(results):
    path = results / "demo/baseline/eval.json"
    write_json(path, evaluation())
    assert synced(results).updated == ["demo/baseline"]
    run = runs(results)[1]["baseline"]
    assert run.info.start_time == run.info.end_time == path.stat().st_mtime_ns // 1_000_000
    write_json(path, evaluation() | {"flops": {"closed_form": 7}})  # evaluated again
    assert synced(results).updated == ["demo/baseline"]
    assert runs(results)[1]["baseline"].data.metrics["size/flops"] == 7


def test_an_arm_has_a_series_of_quality_by_selector(results):
    write_json(results / "demo/d2dmoe/eval.json", arm("d2dmoe", "experts", "dynamic_k"))
    assert synced(results).troubles == []
    client, found = runs(results)
    run, rows = found["d2dmoe"], arm("d2dmoe", "experts", "dynamic_k")["rows"]
    expected = [
        (round(1000 * row["value"]), row["test"]["accuracy"])
        for row in rows
        if row["selector"] == "dynamic_k" and not row["bound"]
    ]
    assert series(client, run, "dynamic_k/accuracy_test") == sorted(expected)
    assert run.data.tags["method"] == "experts" and run.data.metrics["result/accuracy_test"] > 0


def test_without_a_target_the_share_is_the_measured_one():
    named = {name: value for name, value, _ in figures(evaluation("ppl", searched=False))}
    assert named["result/ppl_test"] == 1.25
    assert named["share/measured"] == 1 / 1.6
    assert not {"share/requested", "search/cost"} & named.keys()


def test_more_params_and_points_than_one_request_of_mlflow_takes(results):
    many = {f"expert:{index}": index for index in range(250)}
    with tracking.track(
        experiment="demo", variant="v", stage="s", params=many | {"long": "x" * 6000}, results=results
    ) as run:
        for step in range(10):
            run.row({"step": step, **many})
    assert synced(results).troubles == []
    client, found = runs(results)
    assert found["v/s"].data.params["expert_249"] == "249"
    assert len(found["v/s"].data.metrics) == 250
    assert series(client, found["v/s"], "expert_7") == [(step, 7.0) for step in range(10)]


def test_a_killed_job_continues_its_run(results):
    def attempt(*steps, error=None):
        with tracking.track(experiment="demo", variant="v", stage="s", params={}, results=results) as run:
            for step in steps:
                run.row({"step": step, "loss": 1 / step})
            if error:
                raise error

    with pytest.raises(SystemExit):
        attempt(10, 20, error=SystemExit(143))
    synced(results)
    client, found = runs(results)
    killed = found["v/s"]
    assert killed.info.status == found["v"].info.status == "KILLED"
    with pytest.raises(UserError):
        attempt(20, error=UserError("loss is nan"))
    synced(results)
    assert runs(results)[1]["v/s"].data.tags["error"] == "UserError: loss is nan"
    attempt(20, 30)
    synced(results)
    client, found = runs(results)
    assert found["v/s"].info.run_id == killed.info.run_id
    assert found["v/s"].info.status == found["v"].info.status == "FINISHED"
    assert "error" not in found["v/s"].data.tags
    assert series(client, found["v/s"], "loss") == [(10, 0.1), (20, 0.05), (30, 1 / 30)]


def test_a_running_job_is_running_and_a_job_without_an_end_is_killed(results):
    job = tracking.track(experiment="demo", variant="v", stage="s", params={}, results=results)
    with job as run:
        run.row({"step": 1, "loss": 1})
        synced(results)
        found = runs(results)[1]
        assert found["v/s"].info.status == found["v"].info.status == "RUNNING"
        assert found["v/s"].data.metrics["loss"] == 1
    (path,) = journals(results)
    path.write_bytes(path.read_bytes().rpartition(b'{"time"')[0])  # without the end
    path.with_suffix(".state").unlink()
    synced(results)
    found = runs(results)[1]
    assert found["v/s"].info.status == found["v"].info.status == "KILLED"


def test_eight_jobs_at_once_are_eight_runs(results):
    body = (
        "import sys; from planer.workflow import tracking\n"
        "number, results = int(sys.argv[1]), sys.argv[2]\n"
        "with tracking.track(experiment='demo', variant=f'v{number}', stage='s', params={}, results=results) as run:\n"
        "    for step in range(50): run.row({'step': step, 'value': number})"
    )
    jobs = [subprocess.Popen([sys.executable, "-c", body, str(n), str(results)], cwd=ROOT) for n in range(8)]
    assert [job.wait() for job in jobs] == [0] * 8
    assert synced(results).troubles == []
    client, found = runs(results)
    assert set(found) == {f"v{n}" for n in range(8)} | {f"v{n}/s" for n in range(8)}
    for number in range(8):
        assert series(client, found[f"v{number}/s"], "value") == [(step, number) for step in range(50)]


def test_deleted_runs_are_made_again(results, empty):
    record(results)
    synced(results)
    old = runs(results)[1]
    client = runs(results)[0]
    client.delete_run(old["target_0.5/retrain"].info.run_id)
    record(results, variant="other")
    synced(results)
    os.replace(shutil.copy(empty / "mlflow.db", results / "copy.db"), results / "mlflow.db")  # all are lost
    assert synced(results).troubles == []
    assert {"target_0.5", "target_0.5/retrain", "other", "other/retrain"} <= set(runs(results)[1])


def test_without_the_state_files_no_run_is_made_twice(results):
    record(results)
    write_json(results / "demo/target_0.5/eval.json", evaluation())
    synced(results)
    before = runs(results)
    for path in (results / ".tracking").rglob("*"):
        if path.suffix in (".state", ".json"):
            path.write_text("{") if path.name == "run.json" else path.unlink()
    assert synced(results).troubles == []
    client, found = runs(results)
    assert {run.info.run_id for run in found.values()} == {run.info.run_id for run in before[1].values()}
    assert series(client, found["target_0.5/retrain"], "loss") == [(0, 1.0), (1, 0.5), (2, 1 / 3)]


def test_journals_that_mlflow_has_are_deleted(results):
    for seed in range(3):
        record(results, seed=seed)
    client_runs = synced(results).updated
    assert client_runs.count("demo/target_0.5/retrain") == 3
    (left,) = journals(results)
    assert Journal(left).read()[0][0]["start"]["params"] == {"seed": "2"}


def test_a_replaced_or_missing_file_is_no_artifact(results):
    kept = results / "weights"
    kept.write_bytes(b"first")
    record(results, artifact=kept)
    kept.write_bytes(b"other")
    record(results, variant="other", artifact=results / "never")
    assert synced(results).troubles == []
    client, found = runs(results)
    for name, path in (("target_0.5/retrain", kept), ("other/retrain", results / "never")):
        assert client.list_artifacts(found[name].info.run_id) == []
        assert found[name].data.tags["artifacts_missing"] == str(path)


def test_a_damaged_file_affects_its_run_only(results):
    record(results)
    record(results, variant="other")
    next(iter((results / ".tracking/demo/other").rglob("*.jsonl"))).write_text("{}\n")
    (results / "demo/target_0.5").mkdir(parents=True)
    (results / "demo/target_0.5/eval.json").write_text('{"quality": 3}')
    troubles = synced(results).troubles
    assert len(troubles) == 2
    assert "is damaged" in troubles[0] and "delete it" in troubles[0]
    assert "eval.json is damaged" in troubles[1] and "make it anew" in troubles[1]
    assert "target_0.5/retrain" in runs(results)[1]
