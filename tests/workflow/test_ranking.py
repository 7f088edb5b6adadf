"""Signals about random networks and the losses of their trainings."""

from __future__ import annotations

import shutil

import pytest

from benchmarks.ranking import SHARES, agreement, measured
from tests.unit.toy import experiment

pytestmark = pytest.mark.workflow


def test_random_networks_are_scored_and_trained(finished, tmp_path):
    """They have the baseline's latency, at which at least the baseline exists."""
    results = tmp_path / "results/tiny"
    for name in ("data", "tiny/baseline/retrain", "tiny/baseline/teacher"):
        shutil.copytree(finished.folder / "results" / name, tmp_path / "results" / name)
    shutil.copytree(finished.folder / "results/tiny/target_0.5/search", results / "target_1/search")
    shutil.copy(finished.folder / "results/tiny/latency_table.parquet", results)
    config = experiment()
    rows = list(measured(config, results, 1, 3))
    assert len(rows) == 3
    for row in rows:
        assert len(row) == 1 + 1 + 1 + len(SHARES) + 3 + 1 and row["supernet"] > 0
        assert row["5% of the training"] > row["40% of the training"] > row["final"] > 0
        assert row["before training"] != row["5% of the training"]
        assert row["parameters"] >= row["active parameters"] > 0 and row["FLOPs"] > 0
    found = agreement(rows, 0)
    assert [signal["signal"] for signal in found] == [name for name in rows[0] if name not in ("pattern", "final")]
    shutil.rmtree(results / "baseline/teacher")
    (again,) = measured(config, results, 1, 1)
    assert again == rows[0], "stored and computed logits give the same row"
