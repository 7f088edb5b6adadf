"""The process beside a workflow and the command: no trouble reaches a job, and no password is shown."""

from __future__ import annotations

import socket
import subprocess
import sys
import time

import pytest
from mlflow.tracking import MlflowClient

from planer.errors import UserError
from planer.workflow import tracking
from planer.workflow.tracking import follow
from planer.workflow.tracking.__main__ import main
from planer.workflow.tracking.journal import journals
from planer.workflow.tracking.store import opened
from tests.tracking.records import record, runs


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
    assert f"python -m planer.workflow.tracking sync {tmp_path}" in line
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
    from planer.workflow.tracking.secrets import one_line, redacted

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
