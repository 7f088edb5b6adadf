"""The files of the whole pipeline at toy size."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml
from jsonschema import Draft202012Validator
from mlflow.tracking import MlflowClient

from tests.workflow.conftest import ROOT, Workspace, copy_of

pytestmark = pytest.mark.workflow
SCHEMA = json.loads((ROOT / "planer/schemas/eval.schema.json").read_text())


def evaluation(workspace: Workspace, variant: str) -> dict:
    return json.loads((workspace.folder / f"results/tiny/{variant}/eval.json").read_text())


def copy_of_inputs(finished: Workspace, folder: Path) -> Workspace:
    """Another workspace with the corpus and the latency table."""
    again = Workspace(folder)
    for name in ("results/data", "results/tiny/latency_table.parquet", ".snakemake/metadata"):
        source, copy = finished.folder / name, again.folder / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, copy) if source.is_dir() else shutil.copy2(source, copy)
    return again


@pytest.mark.parametrize("variant", ["baseline", "target_0.5"])
def test_evaluations_are_valid_by_their_schema(finished, variant):
    Draft202012Validator(SCHEMA).validate(evaluation(finished, variant))


def test_the_chosen_network_meets_its_target_by_the_table(finished):
    target = evaluation(finished, "target_0.5")["target"]
    assert target["requested"] == 0.5
    assert target["estimated"] <= 0.5 and target["slack"] >= 0


def test_the_evaluation_gives_the_cost_of_the_search(finished):
    report, baseline = (evaluation(finished, variant) for variant in ("target_0.5", "baseline"))
    cost = report["search"]
    trained = baseline["provenance"]["wall_seconds"]["retrain"]
    assert cost["ratio"] == cost["seconds"] / trained and cost["stages"]["choice"] > 0
    assert cost["seconds"] == sum(cost["stages"].values()) and cost["stages"]["search"] > 0
    assert report["selection"]["chosen_by"] == "proxy training" and report["selection"]["incumbents"]
    assert baseline["search"] is baseline["selection"] is None
    figures = {path.stem for path in (finished.folder / "results/tiny/figures").iterdir()}
    assert {"search_health", "choices", "updates"} <= figures


def test_the_chosen_network_is_the_best_candidate(finished):
    """The better half is trained further, and the retraining resumes at the end of the winner's proxy training."""
    report = evaluation(finished, "target_0.5")
    candidates = report["selection"]["candidates"]
    assert {"shallow", "edited", "solver"} <= {candidate["source"] for candidate in candidates}
    assert all(candidate["estimated"] <= 0.5 for candidate in candidates)
    assert {candidate["proxy_share"] for candidate in candidates} == {0.25, 0.5}
    last = [candidate for candidate in candidates if candidate["proxy_share"] == 0.5]
    assert len(last) == -(-len(candidates) // 2)
    (winner,) = (one for one in last if one["pattern"] == report["architecture"]["pattern"])
    best = min(last, key=lambda candidate: candidate["proxy_nll"])
    assert winner is best or winner["estimated"] < best["estimated"], "of networks with equal losses it is the fastest"
    assert winner["source"] == report["selection"]["source"]
    log = (finished.folder / "logs/tiny/target_0.5/retrain.log").read_text()
    assert "retrain: resuming at step 10/20" in log
    assert not list((finished.folder / "scratch").rglob("*.safetensors"))


def test_all_stages_but_the_baselines_training_learn_from_the_baseline(finished):
    histories = {
        f"{variant}/{stage}": pd.read_parquet(finished.folder / f"results/tiny/{variant}/{stage}/history.parquet")
        for variant in ("baseline", "target_0.5")
        for stage in ("retrain", "sparsify")
    }
    taught = {name for name, history in histories.items() if "divergence" in history}
    assert taught == set(histories) - {"baseline/retrain"}


def test_conversion_keeps_the_loss_and_thresholds_lower_the_flops(finished):
    report = evaluation(finished, "baseline")
    assert report["conversion"]["converted_layers"] == 2
    assert abs(report["conversion"]["tau0_difference"]) < 1e-4
    flops = [row["converted_flops"] for row in report["dynamic_k"]]
    assert report["dynamic_k"][0]["tau"] == 0
    assert flops == sorted(flops, reverse=True) and flops[-1] < flops[0]


def test_the_report_is_one_page_without_links_to_other_files(finished):
    page = (finished.folder / "results/tiny/report.html").read_text()
    assert "target_0.5" in page and page.count("<svg") >= 4
    assert not re.search(r"(src|href)\s*=\s*[\"']https?:", page)
    comparison = pd.read_parquet(finished.folder / "results/tiny/comparison.parquet")
    assert list(comparison["variant"]) == ["baseline", "target_0.5"]


def test_the_same_seed_and_table_give_the_same_bits(finished, tmp_path):
    again = copy_of_inputs(finished, tmp_path)
    result = again.run("results/tiny/target_0.5/retrain/metrics.json")
    assert result.returncode == 0, result.stdout
    first, second = (workspace.folder / "results/tiny/target_0.5" for workspace in (finished, again))
    for name in ("architecture.yaml", "retrain/model.safetensors", "retrain/history.parquet"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    losses = [json.loads((folder / "retrain/metrics.json").read_text())["valid_nll"] for folder in (first, second)]
    assert losses[0] == losses[1]
    teacher = "results/tiny/baseline/teacher/logits.safetensors"
    assert (finished.folder / teacher).read_bytes() == (again.folder / teacher).read_bytes()


def test_the_other_methods_and_controls(finished, tmp_path):
    """Each chooses from its design space within its target, if it has one."""
    again = copy_of(finished, tmp_path)
    variants = ["isoparam_0.6", "par_search", "lts_0.6", "shallow_0.6", "random_1_1"]
    result = again.run(*(f"results/tiny/{variant}/architecture.yaml" for variant in variants))
    assert result.returncode == 0, result.stdout
    chosen = {}
    for variant in variants:
        content = yaml.safe_load((again.folder / f"results/tiny/{variant}/architecture.yaml").read_text())
        chosen[variant] = content["selection"] | {"pattern": content["pattern"]}
    kinds = {variant: set(re.findall(r"[a-z]\d*", notes["pattern"])) for variant, notes in chosen.items()}
    assert kinds["par_search"] <= {"s", "f", "i", "x2", "x3", "x4"}
    for variant in ("isoparam_0.6", "shallow_0.6"):
        assert not any(kind.startswith("m") for kind in kinds[variant])
    assert all(chosen[variant]["estimated"] <= 0.6 for variant in ("isoparam_0.6", "lts_0.6", "shallow_0.6"))
    assert 0.98 <= chosen["random_1_1"]["estimated"] <= 1  # the baseline is in this interval
    assert chosen["lts_0.6"]["scored_by"] == "params"


def test_the_papers_method_and_the_continued_baseline(finished, tmp_path):
    again = copy_of(finished, tmp_path)
    variants = ("target_0.5-scratch", "continued")
    result = again.run(*(f"results/tiny/{variant}/retrain/metrics.json" for variant in variants))
    assert result.returncode == 0, result.stdout
    results = again.folder / "results/tiny"
    metrics = {name: json.loads((results / name / "retrain/metrics.json").read_text()) for name in variants}
    assert [metrics[name]["steps"] for name in variants] == [30, 20]
    assert not any("divergence" in pd.read_parquet(results / name / "retrain/history.parquet") for name in variants)
    notes = yaml.safe_load((results / "target_0.5-scratch/architecture.yaml").read_text())["selection"]
    assert notes["source"] == "argmax" and not notes["closed_loop"]
    searches = [pd.read_parquet(results / name / "search/trajectory.parquet") for name in (variants[0], "target_0.5")]
    assert ["kl_weights" in trajectory for trajectory in searches] == [False, True]
    baseline = json.loads((results / "baseline/retrain/metrics.json").read_text())
    assert metrics["continued"]["valid_nll"] < baseline["valid_nll"]


def test_projections_become_experts_too(finished, tmp_path):
    again = copy_of(finished, tmp_path)
    short = {"batch": 4, "tgt_len": 32, "mem_len": 32, "steps": 6, "log_steps": 3, "checkpoint_steps": 3}
    again.edit(projections=short | {"replace": True}, default_variants=["baseline"])
    target = "results/tiny/report.html"
    stages = ("replace_projections", "sparsify", "cluster_experts", "train_routers", "evaluate", "compare")
    assert again.planned(target) == dict.fromkeys(stages, 1)
    result = again.run(target)
    assert result.returncode == 0, result.stdout
    report = evaluation(again, "baseline")
    Draft202012Validator(SCHEMA).validate(report)
    assert report["architecture"] == evaluation(finished, "baseline")["architecture"]
    conversion, rows = report["conversion"], report["dynamic_k"]
    assert conversion["blocks"] == [0, 0, 0, 0, 1, 2, 2, 2, 2, 3]
    assert conversion["num_experts"] == [2, 2, 2, 2, 8] * 2 and "projections" in report["provenance"]["wall_seconds"]
    assert abs(conversion["tau0_difference"]) < 1e-4
    assert rows[0]["experts_per_layer"] == conversion["num_experts"]
    assert rows[-1]["converted_flops"] < rows[0]["converted_flops"]
    assert "4 of 4 blocks converted, 2 or 8 experts each" in (again.folder / target).read_text()


def test_every_stage_is_in_mlflow_below_its_variant(finished):
    client = MlflowClient(f"sqlite:///{finished.folder}/results/mlflow.db")
    experiment = client.get_experiment_by_name("tiny")
    runs = client.search_runs([experiment.experiment_id], max_results=100)
    found = {run.info.run_name: run for run in runs}
    assert len(found) == len(runs)
    stages = ["retrain", "sparsify", "cluster_experts", "train_routers", "evaluate"]
    below = {
        "baseline": [f"baseline/{stage}" for stage in [*stages, "pattern", "teacher"]],
        "target_0.5": [f"target_0.5/{stage}" for stage in [*stages, "search", "choose"]],
        "tiny": [f"shared/{stage}" for stage in ("profile_blocks", "check_additivity", "estimate_cost", "compare")],
    }
    assert set(found) == set(below) | {name for names in below.values() for name in names}
    assert {run.info.status for run in runs} == {"FINISHED"}
    for parent, names in below.items():
        ids = {found[name].data.tags["mlflow.parentRunId"] for name in names}
        assert ids == {found[parent].info.run_id}

    report = evaluation(finished, "target_0.5")
    numbers = found["target_0.5"].data.metrics
    assert numbers["result/bpc_test"] == pytest.approx(report["quality"]["final"]["test"]["bpc"])
    assert numbers["share/requested"] == 0.5 and numbers["search/cost"] == pytest.approx(report["search"]["ratio"])
    sweep = client.get_metric_history(found["target_0.5"].info.run_id, "tau/bpc_test")
    assert sorted(point.step for point in sweep) == [0, 100, 500]
    assert {file.path for file in client.list_artifacts(found["tiny"].info.run_id)} == {"report.html", "figures"}

    assert not [run for run in runs if "artifacts_missing" in run.data.tags]

    retrain = found["baseline/retrain"]
    assert retrain.data.params["config.retrain.steps"] == "30"
    series = client.get_metric_history(retrain.info.run_id, "loss")
    history = pd.read_parquet(finished.folder / "results/tiny/baseline/retrain/history.parquet")
    assert [point.value for point in series] == pytest.approx(history["loss"].dropna().tolist())
    assert {"git_commit", "device", "torch"} <= set(retrain.data.tags)
    files = {file.path for file in client.list_artifacts(retrain.info.run_id)}
    assert {"model.safetensors", "architecture.yaml", "history.parquet", "metrics.json"} <= files
    architecture = Path(client.download_artifacts(retrain.info.run_id, "architecture.yaml"))
    assert yaml.safe_load(architecture.read_text())["pattern"] == "(sf)x2"

    data = client.search_runs([client.get_experiment_by_name("data").experiment_id])
    assert {run.info.run_name for run in data} == {"data", "pysource/prepare_data"}
