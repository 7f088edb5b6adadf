"""The MLflow mirror against real stores: what a run shows, how it ends, and that no trouble reaches the job."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from planer import tracking
from planer.files import UserError
from planer.source import git_commit

MlflowClient = pytest.importorskip("mlflow.tracking").MlflowClient
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def default_store(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def crowd(tmp_path_factory):
    """A results folder that four jobs at once found empty, and how each of them ended."""
    results = tmp_path_factory.mktemp("results")
    body = 'for step in range(50): run.row({"step": step, "value": int(arguments[0])})'
    jobs = [job(results, "crowd", body, number) for number in range(4)]
    return results, [(process.communicate()[1], process.returncode) for process in jobs]


@pytest.fixture
def results(crowd):
    """A results folder whose store knows the experiment demo."""
    return crowd[0]


def track(results, stage, **options):
    settings = {"experiment": "demo", "variant": "target_0.5", "params": {"seed": 1}} | options
    return tracking.track(results=results, stage=stage, **settings)


def job(results, stage, body, *arguments):
    """A job of its own process, whose body sees run and the arguments."""
    script = f"""
        import os, signal, sys, time
        sys.path.insert(0, {str(ROOT)!r})
        from planer import tracking
        results, stage, *arguments = sys.argv[1:]
        with tracking.track(experiment="demo", variant="baseline", stage=stage, params={{"seed": 1}},
                            scratch=results + "/scratch", results=results) as run:
            {body}
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(results), stage, *map(str, arguments)]
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def runs(results, stage):
    """A client of the store, and the runs of a stage, the newest first."""
    client = MlflowClient(f"sqlite:///{results}/mlflow.db")
    experiment = client.get_experiment_by_name("demo").experiment_id
    return client, client.search_runs([experiment], f"tags.stage = '{stage}'")


def only_run(results, stage):
    client, found = runs(results, stage)
    assert len(found) == 1
    return client, found[0]


def series(client, run, name):
    return sorted((point.step, point.value) for point in client.get_metric_history(run.info.run_id, name))


def test_a_run_shows_params_tags_series_results_and_files(results, tmp_path, capsys):
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"weights")
    figures = tmp_path / "figures"
    figures.mkdir()
    (figures / "curve.svg").write_text("<svg/>")
    params = {"config": {"retrain": {"lr": 0.5, "betas": [0.9, 0.999]}}, "note": "x" * 7000}
    many = {f"expert {index}": index for index in range(250)}
    with track(results, "retrain", params=params | {"many": many}, tags={"device": "cpu"}) as run:
        for step in (10, 20):
            run.row({"step": step, "loss": 1 / step, "phase": "alpha", "layer:3": {"load?": step}})
        run.metrics({"loss": 0.01, "valid": {"nll": 1.5, "ppl": float("inf")}, "why": "text", **many})
        run.artifact(weights, figures)

    client, run = only_run(results, "retrain")
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "target_0.5/retrain"
    assert run.info.start_time < run.info.end_time
    assert run.data.params["config.retrain.lr"] == "0.5"
    assert run.data.params["config.retrain.betas"] == "[0.9, 0.999]"
    assert run.data.params["many.expert 249"] == "249"
    expected = {"experiment": "demo", "variant": "target_0.5", "stage": "retrain", "device": "cpu"}
    assert expected.items() <= run.data.tags.items()
    assert run.data.tags["git_commit"] == git_commit()
    assert {"python", "torch", "planer"} <= run.data.tags.keys()
    assert series(client, run, "loss") == [(10, 0.1), (20, 0.01), (20, 0.05)]
    assert series(client, run, "layer_3.load_") == [(10, 10.0), (20, 20.0)]
    assert run.data.metrics["valid.nll"] == 1.5
    assert not {"step", "phase", "why"} & run.data.metrics.keys()
    kept = Path(run.info.artifact_uri.removeprefix("file://"))
    assert kept.is_relative_to(results / "mlartifacts" / "demo")
    assert (kept / "model.safetensors").samefile(weights)
    assert (kept / "figures/curve.svg").read_text() == "<svg/>"
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {"model.safetensors", "figures"}
    assert capsys.readouterr().err == ""


def test_a_killed_job_goes_on_in_its_run(results):
    body = 'run.row({"step": 10, "loss": 3}); run.row({"step": 20, "loss": 2}); os.kill(os.getpid(), signal.SIGTERM)'
    assert job(results, "sparsify", body).wait() == 128 + signal.SIGTERM
    client, killed = only_run(results, "sparsify")
    assert killed.info.status == "KILLED"

    body = 'run.row({"step": 20, "loss": 2}); run.row({"step": 30, "loss": 1})'
    assert job(results, "sparsify", body).wait() == 0
    client, run = only_run(results, "sparsify")
    assert run.info.run_id == killed.info.run_id
    assert run.info.status == "FINISHED"
    assert series(client, run, "loss") == [(10, 3.0), (20, 2.0), (30, 1.0)]
    assert not (results / "scratch").exists()


def test_a_failed_job_says_why_and_other_params_start_another_run(results, tmp_path, capsys):
    with pytest.raises(UserError), track(results, "search", scratch=tmp_path):
        raise UserError("loss is nan at step 3")
    assert capsys.readouterr().err == ""
    client, run = only_run(results, "search")
    assert run.info.status == "FAILED"
    assert run.data.tags["error"] == "UserError: loss is nan at step 3"

    with track(results, "search", scratch=tmp_path, params={"seed": 2}) as run:
        run.artifact(tmp_path / "lost.json")
    assert f"no such artifact: {tmp_path}/lost.json" in capsys.readouterr().err
    client, found = runs(results, "search")
    assert [run.info.status for run in found] == ["FINISHED", "FAILED"]


def test_a_job_is_seen_while_it_runs_and_when_it_was_killed_outright(results):
    def status():
        found = runs(results, "train_routers")[1]
        return found and found[0].info.status

    def becomes(wanted):
        return any(status() == wanted or time.sleep(0.1) for _ in range(600))

    killed = job(results, "train_routers", 'run.row({"step": 1, "loss": 1}); time.sleep(300)')
    assert becomes("RUNNING")
    killed.kill()
    killed.wait()
    assert becomes("KILLED")


def test_simultaneous_jobs_create_one_store(crowd):
    results, ends = crowd
    assert ends == [("", 0)] * 4
    client, found = runs(results, "crowd")
    assert sorted(run.data.metrics["value"] for run in found) == [0, 1, 2, 3]
    assert {run.info.status for run in found} == {"FINISHED"}
    for run in found:
        assert [step for step, _ in series(client, run, "value")] == list(range(50))
    assert client.search_runs(["0"]) == []


def folder_for_a_database(tmp_path, monkeypatch):
    (tmp_path / "mlflow.db").mkdir()
    return "unable to open database file"


def closed_port(tmp_path, monkeypatch):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.getsockname()[1]}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    return "onnection"


def noisy_and_missing_mlflow(tmp_path, monkeypatch):
    (tmp_path / "mlflow.py").write_text("print('noise')\nraise ModuleNotFoundError(\"No module named 'mlflow'\")")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "No module named 'mlflow'"


def no_python(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    return "FileNotFoundError"


@pytest.mark.parametrize("trouble", [folder_for_a_database, closed_port, noisy_and_missing_mlflow, no_python])
def test_trouble_is_one_line_of_warning(trouble, tmp_path, monkeypatch, capsys):
    message = trouble(tmp_path, monkeypatch)
    with track(tmp_path, "retrain") as run:
        run.row({"step": 1, "loss": 1.0})
        run.metrics({"nll": 1.0})
        run.artifact(tmp_path)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("warning: MLflow did not get all of retrain (")
    assert message in lines[0]
    assert "noise" not in lines[0]


def test_a_server_that_never_answers_is_left_behind(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tracking, "CLOSE_SECONDS", 3)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.getsockname()[1]}")
        with track(tmp_path, "retrain") as run:
            run.row({"step": 1})
    assert "no answer within 3 s" in capsys.readouterr().err


def test_a_bad_row_costs_only_itself(results, capsys):
    class Odd(float):
        def __float__(self):
            raise ArithmeticError("odd")

    with track(results, "evaluate") as run:
        run.row({"step": 1, "loss": Odd(1.0)})
        run.row({"step": 2, "loss": 2.0})
    assert "(ArithmeticError: odd)" in capsys.readouterr().err
    client, run = only_run(results, "evaluate")
    assert run.info.status == "FINISHED"
    assert series(client, run, "loss") == [(2, 2.0)]


def test_nothing_runs_beside_a_job_before_its_first_row(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/true")
    with track(tmp_path, "profile_blocks") as run:
        run.metrics({"ms": 1.0})
        run.artifact(tmp_path)
        assert run._connection._process is None
        run.row({"step": 1})
        assert run._connection._process is not None


def test_none_switches_the_mirror_off(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "none")
    monkeypatch.delattr(subprocess, "Popen")
    tracking.initialise(tmp_path, "demo")
    with track(tmp_path, "retrain") as run:
        run.row({"step": 1, "loss": 1.0})
        run.metrics({"nll": 1.0})
        run.artifact(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err == ""


def test_initialise_adds_what_is_missing_and_needs_no_mlflow_for_the_rest(results, monkeypatch, capsys):
    tracking.initialise(results, "demo", "another")
    names = {experiment.name for experiment in runs(results, "crowd")[0].search_experiments()}
    assert names == {"Default", "demo", "another"}
    monkeypatch.delattr(subprocess, "Popen")
    tracking.initialise(results, "demo", "another")
    assert capsys.readouterr().err == ""


def test_sigterm_is_left_to_who_handles_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", "/bin/true")
    caught = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: caught.append(number))
    try:
        with track(tmp_path, "retrain"):
            os.kill(os.getpid(), signal.SIGTERM)
        assert caught == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)
    assert signal.getsignal(signal.SIGTERM) is before
