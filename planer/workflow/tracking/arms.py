"""Figures of an arm of a pretrained network, from the contents of its eval.json, for the variant's run."""

from __future__ import annotations


def arm_figures(evaluation: dict) -> list[tuple[str, float, int]]:
    """Metrics and series (name, value, step).  Steps of a selector's series are 1000 times its values."""
    metric = evaluation["task"]["metric"]
    points = [
        (f"result/{metric}_test", evaluation["quality"]["test"][metric], 0),
        ("size/params", evaluation["network"]["params"], 0),
        ("size/flops", evaluation["flops"]["total"], 0),
    ]
    for row in evaluation["rows"]:
        series = "_".join(filter(None, (row["selector"], row["bound"])))
        step = round(1000 * row["value"])
        points.append((f"{series}/{metric}_test", row["test"][metric], step))
        points.append((f"{series}/flops_ratio", row["network_ratio"], step))
    for index, row in enumerate(evaluation["latency"]):
        points += [(f"workload/{name}", row[name], index) for name in ("median_ms", "speed_up")]
    return [(name, float(value), step) for name, value, step in points]


def arm_description(evaluation: dict) -> dict[str, str]:
    """Tags: the method, the network, and the machine it was measured on."""
    tags = {"method": evaluation["method"], "model_type": evaluation["network"]["model_type"]}
    return tags | {name: str(evaluation["provenance"][name]) for name in ("device", "dtype", "git_commit")}
