"""Journals and evaluations in real MLflow stores: nothing is lost, nothing is there twice, no trouble reaches a job."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from planer import tracking
from planer.files import UserError, write_json
from planer.tracking import follow
from planer.tracking.__main__ import main
from planer.tracking.journal import Journal, journals
from planer.tracking.store import opened
from planer.tracking.sync import sync
from planer.tracking.variants import figures
from planer.tracking.view import columns

MlflowClient = pytest.importorskip("mlflow.tracking").MlflowClient
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def default_store(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """A results folder with an empty store: creating one takes seconds."""
    results = tmp_path_factory.mktemp("store") / "results"
    results.mkdir()
    with opened(results, 600):
        pass
    return results


@pytest.fixture
def results(empty, tmp_path):
    """A results folder of its own with an empty store."""
    return Path(shutil.copytree(empty, tmp_path / "results"))


def record(results, variant="target_0.5", stage="retrain", seed=1, rows=3, artifact=None, experiment="demo"):
    """A job."""
    run = tracking.track(experiment=experiment, variant=variant, stage=stage, params={"seed": seed}, results=results)
    with run as run:
        for step in range(rows):
            run.row({"step": step, "loss": seed / (1 + step)})
        if artifact:
            run.artifact(artifact)


def synced(results):
    with opened(results, 600) as store:
        return sync(results, store)


def runs(results, experiment="demo", database=None):
    """A client, and the runs by name."""
    client = MlflowClient(f"sqlite:///{database or results / 'mlflow.db'}")
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id], max_results=1000)
    names = [run.info.run_name for run in found]
    assert len(names) == len(set(names)), names
    return client, {run.info.run_name: run for run in found}


def series(client, run, name):
    return sorted((point.step, point.value) for point in client.get_metric_history(run.info.run_id, name))


def evaluation(unit="bpc", searched=True):
    """What figures() reads of an eval.json."""
    latency = {"median_ms": 2.0, "speed_up": 1.6}
    return {
        "architecture": {"pattern": "(sf)x2", "params": 300, "active_params": 200},
        "quality": {"unit": unit, "final": {"test": {unit: 1.25}}},
        "latency": [{**latency, "headline": False, "speed_up": 1.5}, {**latency, "headline": True}],
        "target": {"requested": 0.5, "measured": 0.625} if searched else None,
        "search": {"ratio": 0.75} if searched else None,
        "flops": {"closed_form": 1000},
        "dynamic_k": [
            {"tau": tau, "test": {unit: 1.25 + tau}, "latency": {"median_ms": 3.0}, "converted_flops_ratio": 1 - tau}
            for tau in (0, 0.005, 0.5)
        ],
        "provenance": {"device": "cpu", "dtype": "float32", "git_commit": "abc"},
    }


def test_a_variant_shows_its_figures_and_has_its_stages_below(results):
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


def test_an_evaluation_without_journals_is_shown_too(results):
    path = results / "demo/baseline/eval.json"
    write_json(path, evaluation())
    assert synced(results).updated == ["demo/baseline"]
    run = runs(results)[1]["baseline"]
    assert run.info.start_time == run.info.end_time == path.stat().st_mtime_ns // 1_000_000
    write_json(path, evaluation() | {"flops": {"closed_form": 7}})  # evaluated again
    assert synced(results).updated == ["demo/baseline"]
    assert runs(results)[1]["baseline"].data.metrics["size/flops"] == 7


def test_without_a_target_what_was_measured_is_the_share():
    named = {name: value for name, value, _ in figures(evaluation("ppl", searched=False))}
    assert named["result/ppl_test"] == 1.25
    assert named["share/measured"] == 1 / 1.6
    assert not {"share/requested", "search/cost"} & named.keys()


def test_more_params_and_points_than_mlflow_takes_at_once(results):
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


def test_a_killed_job_goes_on_in_its_run(results):
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


def test_a_running_job_is_seen_and_one_that_was_killed_outright_is_killed(results):
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


def test_eight_jobs_at_once_leave_eight_runs(results):
    body = (
        "import sys; from planer import tracking\n"
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


def test_lost_runs_are_made_up_later(results, empty):
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


def test_a_sync_that_was_killed_before_it_could_remember_makes_no_run_twice(results):
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


def test_journals_that_mlflow_has_do_not_pile_up(results):
    for seed in range(3):
        record(results, seed=seed)
    client_runs = synced(results).updated
    assert client_runs.count("demo/target_0.5/retrain") == 3
    (left,) = journals(results)
    assert Journal(left).read()[0][0]["start"]["params"] == {"seed": "2"}


def test_a_file_that_was_replaced_since_is_no_artifact(results):
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


def test_a_damaged_file_costs_its_own_run(results):
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


def test_a_copied_checkout_writes_into_its_own_folder(results, tmp_path):
    kept = results / "weights"
    kept.write_bytes(b"weights")
    record(results, artifact=kept)
    synced(results)
    copy = tmp_path / "a copy/results"
    shutil.copytree(results, copy)
    record(copy, variant="other", artifact=copy / "weights")
    before = sorted((results / "mlartifacts").rglob("*"))
    assert synced(copy).troubles == []
    client, found = runs(copy)
    assert set(found) == {"target_0.5", "target_0.5/retrain", "other", "other/retrain"}
    for name in ("target_0.5/retrain", "other/retrain"):
        assert [file.path for file in client.list_artifacts(found[name].info.run_id)] == ["weights"]
        location = found[name].info.artifact_uri.replace("%20", " ").removeprefix("file://")
        assert Path(location).is_relative_to(copy / "mlartifacts/demo")
    assert sorted((results / "mlartifacts").rglob("*")) == before


def in_a_child(function) -> int:
    """Its process id; the function runs in a copy of this process, which has MLflow's modules already."""
    child = os.fork()
    if child == 0:
        try:
            function()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return child


def test_three_checkouts_share_a_database_that_is_not_there_yet(tmp_path, monkeypatch):
    database = tmp_path / "shared.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    checkouts = [tmp_path / f"checkout{number}/results" for number in range(3)]
    for number, results in enumerate(checkouts):
        record(results, variant="same", seed=number)
    children = [in_a_child(lambda results=results: synced(results)) for results in checkouts]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    client = MlflowClient(f"sqlite:///{database}")
    found = client.search_runs([client.get_experiment_by_name("demo").experiment_id])
    assert sorted(run.info.run_name for run in found) == ["same"] * 3 + ["same/retrain"] * 3
    assert sorted(run.data.params["seed"] for run in found if run.data.params) == ["0", "1", "2"]
    assert client.search_runs(["0"]) == []


@pytest.mark.parametrize("statement", [1, 300])
def test_a_process_that_is_killed_while_it_creates_the_store_leaves_none(tmp_path, statement):
    def create():
        from sqlalchemy import event
        from sqlalchemy.engine import Engine

        left = iter(range(statement, -1, -1))
        event.listen(Engine, "before_cursor_execute", lambda *_: next(left) or os.kill(os.getpid(), signal.SIGKILL))
        synced(tmp_path)

    assert os.waitpid(in_a_child(create), 0)[1] == signal.SIGKILL
    assert not (tmp_path / "mlflow.db").exists()
    leftovers = list(tmp_path.glob(".mlflow.db.*"))
    assert leftovers
    if statement == 300:
        record(tmp_path)
        assert synced(tmp_path).troubles == []
        assert set(runs(tmp_path)[1]) == {"target_0.5", "target_0.5/retrain"}
        assert not [path for path in leftovers if path.exists()]


def half_made(database):
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("CREATE TABLE experiments (experiment_id INTEGER)")


def another_version(database):
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
        connection.execute("INSERT INTO alembic_version VALUES ('90e64c465722')")


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (half_made, "is half made"),
        (another_version, "schema 90e64c465722"),
        (lambda database: database.write_text("no database at all"), "is no MLflow database"),
        (lambda database: database.mkdir(), "is no MLflow database"),
    ],
)
def test_a_store_that_is_no_good_is_named(tmp_path, capsys, break_it, message):
    break_it(tmp_path / "mlflow.db")
    record(tmp_path)
    before = (tmp_path / "mlflow.db").is_file() and (tmp_path / "mlflow.db").read_bytes()
    assert main(["sync", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"planer: {tmp_path}/mlflow.db ") and message in line and "delete it" in line
    assert before == ((tmp_path / "mlflow.db").is_file() and (tmp_path / "mlflow.db").read_bytes())


def test_a_server_that_never_answers_is_asked_once(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    for number in range(3):
        record(tmp_path, variant=f"v{number}")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.getsockname()[1]}")
        outcome = synced(tmp_path)
        server.settimeout(0)
        server.accept()
        with pytest.raises(BlockingIOError):
            server.accept()
    assert len(outcome.troubles) == 1 and "timeout" in outcome.troubles[0].lower()


def test_the_process_beside_a_workflow_mirrors_jobs_while_they_run_and_when_they_have_ended(results, capsys):
    def status():
        client = MlflowClient(f"sqlite:///{results}/mlflow.db")
        experiment = client.get_experiment_by_name("demo")
        found = experiment and client.search_runs([experiment.experiment_id], "tags.stage = 's'")
        return found and found[0].info.status

    with tracking.track(experiment="demo", variant="v", stage="s", params={}, results=results) as run:
        run.row({"step": 1, "loss": 1})
        tracking.start(results)
        assert any(status() == "RUNNING" or time.sleep(0.2) for _ in range(3000))
    record(results)
    tracking.finish(results)
    assert "warning" not in capsys.readouterr().err
    found = runs(results)[1]
    assert set(found) == {"target_0.5", "target_0.5/retrain", "v", "v/s"}
    assert {run.info.status for run in found.values()} == {"FINISHED"}


def test_a_job_that_has_ended_is_told_from_one_that_runs(tmp_path):
    with tracking.track(experiment="demo", variant="v", stage="s", params={}, results=tmp_path) as run:
        (path,) = journals(tmp_path)
        run.row({"step": 1, "end": 2, "loss": 1})
        assert not follow._has_ended(path)
    assert follow._has_ended(path)
    assert not follow._has_ended(tmp_path / "deleted since")


def closed_port(tmp_path, monkeypatch):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://anna:s3cr3t@{address}")
    return "onnection"


def noisy_and_missing_mlflow(tmp_path, monkeypatch):
    (tmp_path / "mlflow.py").write_text("print('noise')\nraise ModuleNotFoundError(\"No module named 'mlflow'\")")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "No module named 'mlflow'"


def no_python(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    return "FileNotFoundError"


def killed_process(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    return "its process ended with status 1"


@pytest.mark.parametrize("trouble", [closed_port, noisy_and_missing_mlflow, no_python, killed_process])
def test_trouble_is_one_line_of_warning(trouble, tmp_path, monkeypatch, capsys):
    message = trouble(tmp_path, monkeypatch)
    record(tmp_path)
    tracking.start(tmp_path)
    tracking.finish(tmp_path)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: MLflow does not have all runs yet (") and message in line
    assert f"python -m planer.tracking sync {tmp_path}" in line
    assert "noise" not in line and "s3cr3t" not in line


def test_a_password_is_shown_nowhere(tmp_path, monkeypatch, capsys):
    closed_port(tmp_path, monkeypatch)
    record(tmp_path)
    seen = []
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda command, **rest: seen.append(command) or popen(command, **rest))
    tracking.start(tmp_path)
    tracking.finish(tmp_path)
    assert main(["sync", str(tmp_path)]) == 1
    assert main(["ui", str(tmp_path)]) == 1
    with pytest.raises(UserError) as refused, opened(tmp_path, 0), opened(tmp_path, 0):
        pass
    shown = "".join(capsys.readouterr()) + repr(seen) + str(refused.value)
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert "warning" in shown and seen
    assert "s3cr3t" not in shown and b"s3cr3t" not in written


@pytest.mark.parametrize(
    ("uri", "secret"),
    [
        ("http://anna:pass@host:1/x", "pass"),
        ("http://anna:p%40ss@host", "p@ss"),
        ("postgresql://anna:p@ss/word@host/db", "p@ss/word"),
        ("https://token@host", "token"),
    ],
)
def test_addresses_lose_their_passwords(monkeypatch, uri, secret):
    from planer.tracking.secrets import one_line, redacted

    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    text = one_line(ValueError(f"cannot reach {uri}/api: password {secret}"))
    assert secret not in text and uri not in text and "host" in text
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert redacted("see http://anna:other@host/api") == "see http://***@host/api"


def test_the_command_says_what_is_wrong(tmp_path, monkeypatch, capsys):
    assert main(["sync", str(tmp_path / "nowhere")]) == 1
    assert main(["sync", str(tmp_path)]) == 1
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "none")
    record(tmp_path)
    (tmp_path / ".tracking").mkdir()
    assert main(["sync", str(tmp_path)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(";")[0] for line in lines] == [
        f"planer: no folder {tmp_path}/nowhere",
        f"planer: {tmp_path} holds neither journals (.tracking) nor evaluations",
        "planer: MLFLOW_TRACKING_URI=none switches MLflow off",
    ]


def test_the_command_tells_what_it_did(results, capsys):
    record(results)
    assert main(["sync", str(results)]) == 0
    assert main(["sync", str(results)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "demo/target_0.5/retrain",
        "demo/target_0.5",
        f"2 runs updated, 0 up to date, in sqlite:///{results}/mlflow.db",
        f"0 runs updated, 1 up to date, in sqlite:///{results}/mlflow.db",
    ]
