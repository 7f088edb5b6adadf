"""The variants of an experiment side by side: one row per eval.json."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

TOLERANCE = 0.02
"""The dynamic-k threshold that counts may worsen the dense network's validation nll by this share."""

TEXT = ("variant", "pattern", "unit", "attention")
COUNTS = ("params", "active_params", "converted_layers")
NUMBERS = (
    "valid",
    "test",
    "valid_train_protocol",
    "test_train_protocol",
    "latency_ms",
    "table_ms",
    "speed_up",
    "target_requested",
    "target_estimated",
    "target_measured",
    "flops",
    "flops_ratio",
    "dynamic_tau",
    "dynamic_test",
    "dynamic_flops_ratio",
    "dynamic_network_flops",
    "dynamic_latency_ms",
)


def compare(evaluations: Iterable[dict]) -> pd.DataFrame:
    """Table of the variants, in the order given; what a variant lacks is missing, not an error.

    valid and test are in unit (bpc or ppl) by the final protocol; latencies are those of the headline workload;
    the dynamic columns describe the threshold that ``best_threshold`` chooses.
    """
    table = pd.DataFrame([_row(evaluation) for evaluation in evaluations], columns=[*TEXT, *COUNTS, *NUMBERS])
    kinds = {name: "str" for name in TEXT} | {name: "Int64" for name in COUNTS} | {name: "float64" for name in NUMBERS}
    return table.astype(kinds)


def best_threshold(evaluation: dict, tolerance: float = TOLERANCE) -> dict | None:
    """The row of the sweep with the fewest FLOPs whose validation nll is at most tolerance worse.

    Worse than the dense network before sparsification, which is what a user would run otherwise.  The validation
    split decides, so that the test split stays untouched.  None when no row qualifies or nothing was converted.
    """
    dense = pick(evaluation, "quality", "final", "valid", "nll")
    if dense is None or not pick(evaluation, "conversion", "converted_layers"):
        return None
    rows = [row for row in evaluation.get("dynamic_k", []) if row["valid"]["nll"] <= (1 + tolerance) * dense]
    return min(rows, key=lambda row: row["converted_flops"], default=None)


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
    latency, best = headline(evaluation), best_threshold(evaluation)
    return {
        "variant": evaluation["variant"],
        "pattern": pick(evaluation, "architecture", "pattern"),
        "unit": unit,
        "attention": pick(latency, "attention"),
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
        "flops": pick(evaluation, "flops", "closed_form"),
        "flops_ratio": pick(evaluation, "flops", "baseline_ratio"),
        "dynamic_tau": pick(best, "tau"),
        "dynamic_test": pick(best, "test", unit),
        "dynamic_flops_ratio": pick(best, "converted_flops_ratio"),
        "dynamic_network_flops": pick(best, "network_flops"),
        "dynamic_latency_ms": pick(best, "latency", "median_ms"),
    }
