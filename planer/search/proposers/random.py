"""Uniform random networks: a control, and candidates in case all other proposers are wrong.

Letters in shapes: P positions, N options, G cells of a latency grid.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from planer.errors import UserError
from planer.search.constraints import Limit
from planer.search.space import Candidate, Space
from planer.seed import derive_seed

WINDOW = 0.02
"""A random network uses at least 1 - WINDOW of its latency target."""
CELLS = 20_000
"""Cells of the grid on which networks are counted; a cell is far narrower than the window."""
ATTEMPTS = 1_000
"""Most samples per network: nearly every sample from the grid is also within the exact window."""


def propose(space: Space) -> Iterator[Candidate]:
    """Random networks that use 98 to 100 % of the latency and keep the other limits, each once."""
    found = set()
    for number in range(ATTEMPTS):
        try:
            options = tuple(random_network(space.limits[0], space.positions, derive_seed(space.seed, "random", number)))
        except UserError:
            return
        if options not in found and space.allows(options):
            found.add(options)
            yield Candidate(options, "random")


def random_network(limit: Limit, positions: int, seed: int) -> list[int]:
    """One option per position, uniform over all networks whose cost is within (1 - WINDOW) budget and budget.

    Networks are counted by cost on a grid.  Walking through the counts, from the last position to the first, samples
    each network of a slightly wider window with the same probability.  Those outside the exact window are rejected.
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
    for _ in range(ATTEMPTS if total.sum() else 0):
        spent = lowest + _sample(total, random)
        chosen = [0] * positions
        for position in reversed(range(positions)):
            left = spent - cells
            ways = np.where(left >= 0, counts[position, np.maximum(left, 0)], 0.0)
            chosen[position] = _sample(ways, random)
            spent -= cells[chosen[position]]
        if (1 - WINDOW) * limit.budget <= limit.of(chosen) <= limit.budget:
            return chosen
    raise UserError(
        f"{limit.name} {limit.share:.4g}: found no network of {positions} blocks that costs {1 - WINDOW:.0%} to 100 % "
        f"of {limit.budget / limit.per_unit:.4g} {limit.unit}; choose another {limit.name}"
    )


def _sample(weights: np.ndarray, random: np.random.Generator) -> int:
    return int(random.choice(len(weights), p=weights / weights.sum()))
