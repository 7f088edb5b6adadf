"""Rows of an arm's eval.json: which keep the quality, which is chosen, and whether one curve lies above another.

Measures are compared in their own direction: lower or higher is better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


def keeps(value: float, dense: float, better: str, tolerance: float) -> bool:
    """Whether a measure is at most the share tolerance worse than the dense network's.  better: lower or higher."""
    return value <= (1 + tolerance) * dense if better == "lower" else value >= (1 - tolerance) * dense


def choose(rows: Sequence[Mapping], metric: str, dense: float, better: str, tolerance: float) -> Mapping | None:
    """The row with the fewest FLOPs of the network that keeps the quality of the validation split; None without one.

    rows: of eval.json; bounds are left out.  dense: the dense network's measure of the validation split.
    Of rows with equal FLOPs ``all`` is the last choice: it knows no densities, by which layers leave out products.
    """
    own = [row for row in rows if row["bound"] is None]
    kept = [row for row in own if keeps(row["valid"][metric], dense, better, tolerance)]
    return min(kept, key=lambda row: (row["network_flops"], row["selector"] == "all"), default=None)


def curve(rows: Sequence[Mapping], metric: str, selector: str) -> tuple[np.ndarray, np.ndarray]:
    """Rising ratios of the network's FLOPs and test measures of a selector's rows, without bounds."""
    points = [(r["network_ratio"], r["test"][metric]) for r in rows if r["selector"] == selector and not r["bound"]]
    ratios, values = np.asarray(sorted(points), np.float64).reshape(-1, 2).T
    return ratios, values


def budgets_won(
    own: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray], better: str
) -> tuple[int, int]:
    """At how many of the other curve's FLOPs the own curve is better, and at how many both can be compared.

    Between its points the own curve is a straight line; beyond its ends it is not compared.
    """
    (ratios, values), (budgets, reference) = own, other
    inside = (budgets >= ratios.min(initial=np.inf)) & (budgets <= ratios.max(initial=-np.inf))
    if not inside.any():
        return 0, 0
    gain = np.interp(budgets[inside], ratios, values) - reference[inside]
    return int(np.sum(gain < 0 if better == "lower" else gain > 0)), int(inside.sum())
