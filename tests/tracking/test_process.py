"""The process that mirrors a workflow to MLflow, and the command: errors are one line without passwords."""

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
from planer.workflow.tracking.secrets import one_line, redacted
from planer.workflow.tracking.store import opened
from tests.tracking.records import record, runs


def test_jobs_are_mirrored_while_they_run_and_after_their_end(results, capsys):
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


def test_the_end_of_a_job_is_recognised(tmp_path):
    with tracking.track(experiment="demo", variant="v", stage="s", params={}, results=tmp_path) as run:
        (path,) = journals(tmp_path)
        run.row({"step": 1, "end": 2, "loss": 1})
        assert not follow._has_ended(path)
    assert follow._has_ended(path)
    assert not follow._has_ended(tmp_path / "deleted since")


@pytest.fixture
def closed_port():
    """A port that refuses connections: it is bound, so that no other program takes it, and nothing listens."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        yield server.getsockname()[1]


def refused_connection(tmp_path, monkeypatch, closed_port):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://anna:s3cr3t@127.0.0.1:{closed_port}")
    return "onnection"


def mlflow_that_prints_and_fails(tmp_path, monkeypatch, _):
    (tmp_path / "mlflow.py").write_text("print('noise')\nraise ModuleNotFoundError(\"No module named 'mlflow'\")")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "No module named 'mlflow'"


def missing_python(tmp_path, monkeypatch, _):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    return "FileNotFoundError"


def failing_process(tmp_path, monkeypatch, _):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    return "its process ended with status 1"


@pytest.mark.parametrize("trouble", [refused_connection, mlflow_that_prints_and_fails, missing_python, failing_process])
def test_an_error_is_one_line_of_warning(trouble, tmp_path, monkeypatch, capsys, closed_port):
    message = trouble(tmp_path, monkeypatch, closed_port)
    record(tmp_path)
    tracking.start(tmp_path)
    tracking.finish(tmp_path)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: MLflow does not have all runs yet (") and message in line
    assert f"python -m planer.workflow.tracking sync {tmp_path}" in line
    assert "noise" not in line and "s3cr3t" not in line


def test_a_password_is_shown_nowhere(tmp_path, monkeypatch, capsys, closed_port):
    refused_connection(tmp_path, monkeypatch, closed_port)
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
def test_passwords_are_removed_from_messages(monkeypatch, uri, secret):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    text = one_line(ValueError(f"cannot reach {uri}/api: password {secret}"))
    assert secret not in text and uri not in text and "host" in text
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert redacted("see http://anna:other@host/api") == "see http://***@host/api"


def test_mistakes_of_the_user_are_one_line(tmp_path, monkeypatch, capsys):
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


def test_the_command_prints_the_updated_runs(results, capsys):
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
