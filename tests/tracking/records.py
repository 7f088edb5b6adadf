"""Journals and evaluations as jobs write them, and MLflow's runs of them."""

from __future__ import annotations

from mlflow.tracking import MlflowClient

from planer.workflow import tracking
from planer.workflow.tracking.store import opened
from planer.workflow.tracking.sync import sync


def record(results, variant="target_0.5", stage="retrain", seed=1, rows=3, artifact=None, experiment="demo"):
    """Write the journal of a job with ``rows`` rows of a series."""
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
    """A client of the store, and its runs by name."""
    client = MlflowClient(f"sqlite:///{database or results / 'mlflow.db'}")
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id], max_results=1000)
    names = [run.info.run_name for run in found]
    assert len(names) == len(set(names)), names
    return client, {run.info.run_name: run for run in found}


def series(client, run, name):
    return sorted((point.step, point.value) for point in client.get_metric_history(run.info.run_id, name))


def evaluation(unit="bpc", searched=True):
    """The parts of an eval.json that figures() reads."""
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
