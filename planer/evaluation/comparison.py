"""The variants of an experiment side by side: one row per eval.json."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from planer.config.thresholds import row_at
from planer.config.variant import parse_variant

TEXT = ("variant", "method", "start", "pattern", "chosen_by", "source", "unit", "attention")
COUNTS = ("repeat", "params", "active_params", "converted_layers")
"""Columns that are no floating-point numbers."""


def compare(evaluations: Iterable[dict]) -> pd.DataFrame:
    """Table of the variants, at least one, in the order given; what a variant lacks is missing, not an error.

    method, start (parent or scratch) and repeat are what the variant's name says; chosen_by and source are those of
    ``selection``.  valid and test are in unit (bpc or ppl) by the final protocol; latencies are those of the headline
    workload; search_seconds are of all stages that found the network, search_ratio is over one training of the
    baseline; the dynamic columns describe the chosen threshold.
    """
    table = pd.DataFrame([_row(evaluation) for evaluation in evaluations])
    kinds = dict.fromkeys(table, "float64") | dict.fromkeys(TEXT, "str") | dict.fromkeys(COUNTS, "Int64")
    return table.astype(kinds)


def chosen_row(evaluation: dict) -> dict | None:
    """The sweep's row of the threshold that the evaluation chose; None when it chose none."""
    tau = pick(evaluation, "conversion", "chosen", "tau")
    return row_at(evaluation.get("dynamic_k", []), tau)


def headline(evaluation: dict) -> dict | None:
    """The latency row of the experiment's own workload."""
    return next((row for row in evaluation.get("latency", []) if row["headline"]), None)


def pick(value, *path: str):
    """value[path[0]][path[1]]..., or None where something is missing."""
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _row(evaluation: dict) -> dict:
    unit = pick(evaluation, "quality", "unit") or "bpc"
    latency, dynamic = headline(evaluation), chosen_row(evaluation)
    variant = parse_variant(evaluation["variant"])
    return {
        "variant": variant.name,
        "method": variant.method,
        "start": "scratch" if variant.scratch else "parent",
        "pattern": pick(evaluation, "architecture", "pattern"),
        "chosen_by": pick(evaluation, "selection", "chosen_by"),
        "source": pick(evaluation, "selection", "source"),
        "unit": unit,
        "attention": pick(latency, "attention"),
        "repeat": variant.repeat,
        "params": pick(evaluation, "architecture", "params"),
        "active_params": pick(evaluation, "architecture", "active_params"),
        "converted_layers": pick(evaluation, "conversion", "converted_layers"),
        "valid": pick(evaluation, "quality", "final", "valid", unit),
        "test": pick(evaluation, "quality", "final", "test", unit),
        "valid_train_protocol": pick(evaluation, "quality", "train", "valid", unit),
        "test_train_protocol": pick(evaluation, "quality", "train", "test", unit),
        "latency_ms": pick(latency, "median_ms"),
        "table_ms": pick(latency, "table_ms"),
        "speed_up": pick(latency, "speed_up"),
        "target_requested": pick(evaluation, "target", "requested"),
        "target_estimated": pick(evaluation, "target", "estimated"),
        "target_measured": pick(evaluation, "target", "measured"),
        "target_slack": pick(evaluation, "target", "slack"),
        "search_seconds": pick(evaluation, "search", "seconds"),
        "search_ratio": pick(evaluation, "search", "ratio"),
        "flops": pick(evaluation, "flops", "closed_form"),
        "flops_ratio": pick(evaluation, "flops", "baseline_ratio"),
        "dynamic_tau": pick(dynamic, "tau"),
        "dynamic_test": pick(dynamic, "test", unit),
        "dynamic_flops_ratio": pick(dynamic, "converted_flops_ratio"),
        "dynamic_network_flops": pick(dynamic, "network_flops"),
        "dynamic_latency_ms": pick(dynamic, "latency", "median_ms"),
        "dynamic_nll_over_dense": pick(evaluation, "conversion", "chosen", "nll_over_dense"),
        "dynamic_nll_over_tau0": pick(evaluation, "conversion", "chosen", "nll_over_tau0"),
        "dynamic_speed_up_over_dense": pick(evaluation, "conversion", "chosen", "speed_up_over_dense"),
    }
