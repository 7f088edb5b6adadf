"""A results folder with an empty MLflow store for every test."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from planer.workflow.tracking.store import opened


@pytest.fixture(autouse=True)
def default_store(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="session")
def empty(tmp_path_factory):
    """A results folder with an empty store, made once: that takes seconds."""
    results = tmp_path_factory.mktemp("store") / "results"
    results.mkdir()
    with opened(results, 600):
        pass
    return results


@pytest.fixture
def results(empty, tmp_path):
    """A results folder with an empty store for one test."""
    return Path(shutil.copytree(empty, tmp_path / "results"))
