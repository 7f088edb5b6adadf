"""MLflow stores: created, copied, shared, damaged, and servers that do not answer."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from planer.workflow.tracking.__main__ import main
from tests.tracking.records import record, runs, synced


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
    """Run the function in a fork of this process, which has imported MLflow; returns the process id."""
    child = os.fork()
    if child == 0:
        try:
            function()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return child


def test_three_checkouts_create_and_share_one_database(tmp_path, monkeypatch):
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
def test_a_killed_creation_leaves_no_store(tmp_path, statement):
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


def incomplete(database):
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("CREATE TABLE experiments (experiment_id INTEGER)")


def another_version(database):
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
        connection.execute("INSERT INTO alembic_version VALUES ('90e64c465722')")


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (incomplete, "is half made"),
        (another_version, "schema 90e64c465722"),
        (lambda database: database.write_text("no database at all"), "is no MLflow database"),
        (lambda database: database.mkdir(), "is no MLflow database"),
    ],
)
def test_an_unusable_store_is_named(tmp_path, capsys, break_it, message):
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
