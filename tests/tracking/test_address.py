"""Addresses of stores that are refused: one line, nothing written, no password shown."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from planer.errors import UserError
from planer.workflow import tracking
from planer.workflow.tracking.__main__ import main
from tests.tracking.records import record


@pytest.mark.parametrize(
    "address",
    [
        "ftp://host/store",
        "s3://bucket",
        "NONE",
        "word",
        "http://",
        "http://[::1",
        "http://host:5000\nx",
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "http://user:geheim@",
        "file:///tmp/runs",
    ],
)
def test_a_wrong_address_is_refused(tmp_path, monkeypatch, capsys, address):
    monkeypatch.chdir(tmp_path)
    record(tmp_path / "results")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    assert main(["sync", "results"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("planer: MLFLOW_TRACKING_URI is ") and "allowed: http(s)://host:port" in line
    assert "geheim" not in line
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(UserError, match="allowed"):
        tracking.start("results")


def other_database(folder):
    with closing(sqlite3.connect(folder / "store.db")) as connection, connection:
        connection.execute("CREATE TABLE bookmarks (title TEXT)")
    return "a database of something else"


def text_file(folder):
    (folder / "store.db").write_text("root:x:0:0:root:/root:/bin/bash\n")
    return "no SQLite database"


def folder_of_that_name(folder):
    (folder / "store.db").mkdir()
    return "is a folder"


@pytest.mark.parametrize("make", [other_database, text_file, folder_of_that_name])
def test_the_message_on_another_file_does_not_tell_to_delete_it(tmp_path, monkeypatch, capsys, make):
    record(tmp_path / "results")
    message = make(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/store.db")
    assert main(["sync", str(tmp_path / "results")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line and "name another file in MLFLOW_TRACKING_URI" in line and "delete" not in line


def test_a_missing_folder_is_named(tmp_path, monkeypatch, capsys):
    record(tmp_path / "results")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/typo/store.db")
    assert main(["sync", str(tmp_path / "results")]) == 1
    assert f"there is no folder {tmp_path}/typo" in capsys.readouterr().err
    assert not (tmp_path / "typo").exists()


@pytest.mark.parametrize("port", ["0", "65536", "-1", "abc", "1;touch x", "9" * 400])
def test_a_wrong_port_is_refused(tmp_path, capsys, port):
    with pytest.raises(SystemExit):
        main(["ui", str(tmp_path), "--port", port])
    assert "allowed: 1 to 65535" in capsys.readouterr().err or port == "-1"
