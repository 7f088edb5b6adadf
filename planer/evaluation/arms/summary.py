"""One line on an arm: its quality, FLOPs and speed at the chosen row, beside its reference."""

from __future__ import annotations

from planer.pretrained.describe import selected


def chosen_row(evaluation: dict) -> dict | None:
    """The row of eval.json that the arm chose, if any."""
    own = (row for row in evaluation["rows"] if not row["bound"])
    return next((row for row in own if same(row, evaluation["chosen"])), None)


def same(entry: dict, other: dict | None) -> bool:
    """Whether two entries mean one selector at one value."""
    return other is not None and all(entry[key] == other[key] for key in ("selector", "value"))


def call_of(entry: dict) -> str:
    """Batch and phase of a timed call."""
    return f"batch {entry['batch']} {entry['phase']}"


def summary_line(evaluation: dict) -> str:
    """Quality of the chosen row on the test split, FLOPs of the network, and speed of every timed call."""
    title, metric = (evaluation["task"][key] for key in ("title", "metric"))
    reference, row = evaluation["reference"], chosen_row(evaluation)
    if evaluation["method"] == "dense":
        own = evaluation["quality"]["test"][metric]
        return f"{title} {own:.4g} on the test split, {evaluation['flops']['total']:.3g} FLOPs per token"
    if row is None:
        return f"no setting keeps the {title} of {reference['variant']} within {evaluation['tolerance']:.1%}"
    timed = [entry for entry in evaluation["latency"] if same(entry, row)]
    speeds = "".join(f"; {call_of(entry)} {entry['speed_up']:.2f} times as fast" for entry in timed)
    return (
        f"{selected(row['selector'], row['value'])}: {title} {row['test'][metric]:.4g}, {reference['variant']} "
        f"{reference['test'][metric]:.4g}; "
        f"{row['network_ratio']:.0%} of the FLOPs{speeds}"
    )
