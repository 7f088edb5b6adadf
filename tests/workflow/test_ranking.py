"""Signals of a finished search beside what trainings of random networks led to."""

from __future__ import annotations

import shutil

import pytest

from benchmarks.ranking import PARTS, agreement, measured
from planer.config import Experiment
from planer.parsing import build, merge
from planer.strict_yaml import read_yaml
from tests.workflow.conftest import ROOT

pytestmark = pytest.mark.workflow


def test_random_networks_are_scored_and_trained(finished, tmp_path):
    """At the baseline's latency, where there is a network for sure: the baseline."""
    results = tmp_path / "results/tiny"
    shutil.copytree(finished.folder / "results/data", tmp_path / "results/data")
    shutil.copytree(finished.folder / "results/tiny/target_0.5/search", results / "target_1/search")
    shutil.copy(finished.folder / "results/tiny/latency_table.parquet", results)
    files = (ROOT / "config/config.yaml", ROOT / "tests/workflow/tiny.yaml")
    config = build(Experiment, merge(*map(read_yaml, files)))
    rows = list(measured(config, results, 1, 3))
    assert len(rows) == 3
    for row in rows:
        assert len(row) == 2 + 2 * PARTS and row["supernet"] > 0
        assert row["10% of the training"] > row["final"] > 0
        assert row["10% of a repetition"] > row["100% of a repetition"] != row["final"]
    assert [found["signal"] for found in agreement(rows, 0)] == [
        name for name in rows[0] if name not in ("pattern", "final")
    ]
