"""A latency table of compiled calls at two batch sizes, and a network chosen by it."""

from __future__ import annotations

import json

import pytest
import yaml

from planer.latency.table import LatencyTable
from tests.workflow.conftest import set_costs

pytestmark = pytest.mark.workflow


def test_a_network_is_chosen_for_two_batches_of_compiled_calls(workspace):
    workspace.edit(
        workload={"execution": "compiled"},
        profile_blocks={"batches": [1], "executions": ["eager"], "networks": 8},
        candidates={"limits": {"latency_batch_1": 0.95}},
        retrain={"steps": 2},
        distill={"steps": 2},
    )
    measured, chosen = "results/tiny/latency_table.parquet", "results/tiny/lts_0.9/architecture.yaml"
    result = workspace.run(measured, "results/tiny/additivity.json")
    assert result.returncode == 0, result.stdout
    set_costs(workspace.folder / measured)
    result = workspace.run(chosen)
    assert result.returncode == 0, result.stdout
    table = LatencyTable.load(workspace.folder / measured)
    settings = set(zip(table.rows["batch"], table.rows["execution"], strict=True))
    assert settings == {(batch, execution) for batch in (4, 1) for execution in ("compiled", "eager")}
    assert set(table.headline_rows["execution"]) == {"compiled"}
    used = yaml.safe_load((workspace.folder / chosen).read_text())["selection"]["used"]
    assert 0 < used["target"] <= 0.9 and 0 < used["latency_batch_1"] <= 0.95
    assert json.loads((workspace.folder / "results/tiny/additivity.json").read_text())["execution"] == "compiled"
