"""Networks chosen without a search, which a searched one has to beat at the same latency.

Letters in shapes: P positions, N options, G cells of a latency grid.
"""

from __future__ import annotations

import numpy as np

from planer.files import UserError
from planer.search.constraints import Limit

WINDOW = 0.02
"""A random control uses between this much less than its latency target and all of it."""
CELLS = 20_000
"""Cells of the grid on which networks are counted; a cell is far narrower than the window."""
TRIES = 1_000
"""Draws before giving up: nearly every draw from the grid is within the true window, too."""


def random_network(limit: Limit, positions: int, seed: int) -> list[int]:
    """One option per position, uniform over all networks whose cost is within (1 - WINDOW) budget and budget.

    Networks are counted by cost on a grid, from the last position to the first; walking through the counts draws each
    network of a slightly wider window with the same chance, and those outside the true window are drawn again.
    Raises UserError when there is no such network.
    """
    limit.require_reachable(positions)
    costs = np.asarray(limit.costs, dtype=np.float64)
    base, unit = costs.min(), limit.budget / CELLS
    cells = np.rint((costs - base) / unit).astype(np.int64)  # off by half a cell each, P/2 in all
    room = limit.budget - limit.fixed - positions * base
    highest = int(np.floor(room / unit)) + positions
    lowest = max(0, int(np.floor((room - WINDOW * limit.budget) / unit)) - positions)
    counts = np.zeros((positions + 1, highest + 1))  # [p, g]: ways to spend g cells on the first p positions
    counts[0, 0] = 1.0
    for position in range(positions):
        for cell in cells[cells <= highest]:
            counts[position + 1, cell:] += counts[position, : highest + 1 - cell]
    total = counts[positions, lowest : highest + 1]
    random = np.random.default_rng(seed)
    for _ in range(TRIES if total.sum() else 0):
        spent = lowest + _draw(total, random)
        chosen = [0] * positions
        for position in reversed(range(positions)):
            left = spent - cells
            ways = np.where(left >= 0, counts[position, np.maximum(left, 0)], 0.0)
            chosen[position] = _draw(ways, random)
            spent -= cells[chosen[position]]
        if (1 - WINDOW) * limit.budget <= limit.of(chosen) <= limit.budget:
            return chosen
    raise UserError(
        f"{limit.name} {limit.share:.4g}: found no network of {positions} blocks that costs {1 - WINDOW:.0%} to 100 % "
        f"of {limit.budget / limit.per_unit:.4g} {limit.unit}; choose another {limit.name}"
    )


def _draw(weights: np.ndarray, random: np.random.Generator) -> int:
    return int(random.choice(len(weights), p=weights / weights.sum()))


def size_scores(params: list[int], positions: int) -> np.ndarray:
    """Scores [P, N] that make the solver choose the most decoder parameters (LTS, arXiv 2203.02094)."""
    return np.tile(np.asarray(params, dtype=np.float64), (positions, 1))
