"""The report's comparison of networks with their controls, and its sentence on the shallow control."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from planer.evaluation.controls import CONTROLS, Comparison, compare_seeds, compare_with_controls
from planer.paired import CONFIDENCE, Paired
from planer.report.page import table


def control_table(evaluations: Sequence[dict]) -> dict | None:
    """The report's table of all comparisons; None where there is none."""
    own = [comparison for evaluation in evaluations for comparison in compare_with_controls(evaluation, evaluations)]
    comparisons = [*own, *compare_seeds(evaluations)]
    if not comparisons:
        return None
    unit = evaluations[0]["quality"]["unit"]
    columns = ["network", "compared with", f"test {unit}", f"control's {unit}", "nll", f"{CONFIDENCE:.0%} interval"]
    columns += ["finding", "pairs"]
    rows = [
        [
            found.network,
            CONTROLS[found.control],
            f"{found.quality:.3f}",
            _mean(found.references),
            f"{found.paired.share:+.2%}",
            interval(found.paired),
            found.paired.word,
            _pairs(found),
        ]
        for found in comparisons
    ]
    return table(columns, rows, text=("network", "compared with", "finding", "pairs"))


def shallow_finding(evaluations: Sequence[dict]) -> str | None:
    """Whether a searched network is better than the shallow control of its target; None where none has one.

    Of a network with several seeds the comparison over seeds counts.
    """
    seeds = [found for found in compare_seeds(evaluations) if found.control == "shallow"]
    several = [found.network.partition(" (")[0] for found in seeds]
    single = [
        found for e in evaluations for found in compare_with_controls(e, evaluations) if found.control == "shallow"
    ]
    comparisons = [*seeds, *(found for found in single if found.network.partition("-seed")[0] not in several)]
    if not comparisons:
        return None
    better = [found for found in comparisons if found.paired.word == "better"]
    listed = "; ".join(
        f"{found.network} has {found.paired.share:+.2%} nll ({CONFIDENCE:.0%} interval {interval(found.paired)})"
        for found in better or comparisons
    )
    opening = "Better than the shallow control" if better else "No searched network is better than the shallow control"
    return f"{opening} of its latency target: {listed}."


def interval(paired: Paired) -> str:
    """Both ends of an interval of nll, as shares of the reference's."""
    low, high = paired.share_interval
    return f"{low:+.2%} to {high:+.2%}" if np.isfinite(high) else "unknown"


def _pairs(found: Comparison) -> str:
    """How many pairs of what, where that is no text."""
    return found.pairs if found.pairs == "segments" else f"{len(found.references)} {found.pairs}"


def _mean(values: Sequence[float]) -> str:
    """Mean, with its standard error where there are several values."""
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{np.mean(values):.3f} \u00b1 {np.std(values, ddof=1) / len(values) ** 0.5:.3f}"
