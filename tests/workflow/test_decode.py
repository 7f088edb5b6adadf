"""A network for text generation: its target is the latency of one token, and a sparse block is an option."""

from __future__ import annotations

import json

import pytest
import yaml

from planer.latency.table import LatencyTable
from tests.workflow.conftest import COSTS_MS, set_costs

pytestmark = pytest.mark.workflow
SPARSE = "sparse_feed_forward_16"
SHORT = {"steps": 2, "log_steps": 1, "checkpoint_steps": 2}


def test_a_network_is_chosen_for_decoding(workspace):
    workspace.edit(
        design_space=["skip", "attention_2", "feed_forward", SPARSE],
        workload={"kinds": ["decode", "segment"], "decode": {"batch": 2, "mem_len": 16}},
        profile_blocks={"copies": 1, "rounds": 3},
        search=SHORT | {"steps": 10, "epoch_steps": 5},
        candidates={"proposers": {"solver": 0, "argmax": 1, "random": 0}, "tokens": 2048},
        retrain=SHORT | {"eval_steps": 2},
        distill=SHORT | {"steps": 4, "eval_steps": 4},
        sparsify=SHORT,
        train_routers=SHORT,
        evaluate={"tgt_len": 256, "mem_len": 16, "taus": [0.5], "latency_rounds": 3},
    )
    measured, variant = "results/tiny/latency_table.parquet", "results/tiny/target_0.5"
    result = workspace.run(measured)
    assert result.returncode == 0, result.stdout
    table = LatencyTable.load(workspace.folder / measured)
    assert set(table.headline_rows["execution"]) == {"decode"} and SPARSE in set(table.headline_rows["option"])
    set_costs(workspace.folder / measured, COSTS_MS | {SPARSE: 0.2})
    result = workspace.run(f"{variant}/eval.json")
    assert result.returncode == 0, result.stdout
    report = json.loads((workspace.folder / variant / "eval.json").read_text())
    assert report["target"]["requested"] == 0.5 and report["target"]["estimated"] <= 0.5
    assert {row["execution"] for row in report["latency"]} == {"decode", "eager"}
    chosen = yaml.safe_load((workspace.folder / variant / "architecture.yaml").read_text())
    assert 0 < chosen["selection"]["used"]["target"] <= 0.5
    assert {block["kind"] for block in chosen["blocks"]} <= {"skip", "attention", "feed_forward", "sparse_feed_forward"}
