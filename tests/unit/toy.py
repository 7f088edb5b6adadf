"""A tiny experiment and a made-up latency table, for tests of the search and of its cost."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pandas as pd

from planer.config import Experiment
from planer.config.strict_yaml import read_yaml
from planer.latency.table import LatencyTable, identity
from planer.parsing import build, merge
from planer.runtime import runtime_of

ROOT = Path(__file__).resolve().parents[2]

VOCAB_SIZE = 256

MS = {
    "embedding_and_head": 1.0,
    "skip": 0.0,
    "attention_1": 2.0,
    "attention_2": 4.0,
    "feed_forward": 3.0,
    "feed_forward_x4": 9.0,
    "moe_top1": 3.5,
    "moe_top2": 6.5,
}
"""Latencies with cached attention; recomputed attention costs twice as much."""


def experiment(**overlay: object) -> Experiment:
    """The experiment of the workflow's tests (d_model 32, 4 positions, 6 options) with some keys changed."""
    files = (ROOT / "config/config.yaml", ROOT / "tests/workflow/tiny.yaml")
    return build(Experiment, merge(*map(read_yaml, files), overlay))


def latency_table_of_this_machine(config: Experiment | None = None, vocab_size: int = VOCAB_SIZE) -> LatencyTable:
    """The made-up latencies with the identity of this machine."""
    config = config or experiment()
    here = identity(runtime_of(config, config.seed), config.workload, config.model, vocab_size)
    made_up = latency_table().rows
    rows = [
        made_up[made_up["attention"].isin(calls.attentions)].assign(batch=calls.batch, execution=calls.execution)
        for calls in config.workload.measured
    ]
    return dataclasses.replace(latency_table(), rows=pd.concat(rows), identity=here)


def latency_table() -> LatencyTable:
    """Made-up latencies of the tiny experiment on a device that does not exist."""
    model, workload = experiment().model, experiment().workload
    shapes = {name: getattr(model, name) for name in ("d_model", "num_heads", "d_inner", "num_experts", "norm")}
    rows = [
        {"option": option, "attention": attention, "median_ms": ms * factor}
        | {"batch": workload.batch, "execution": workload.execution, "routing": "balanced"}
        for attention in ("cached", "recompute")
        for option, ms in MS.items()
        for factor in [2 if attention == "recompute" and option.startswith("attention") else 1]
    ]
    toy = {"device": "Toy Device 3000", "vocab_size": VOCAB_SIZE, "head": model.head.label, **shapes}
    toy |= {"batch": workload.batch, "execution": workload.execution}
    return LatencyTable(pd.DataFrame(rows), toy, notes={})
