"""The most decoder parameters within the latency, without a search (LTS, arXiv 2203.02094)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from planer.errors import UserError
from planer.search.solve import solve
from planer.search.space import Candidate, Space


def propose(space: Space) -> Iterator[Candidate]:
    """One network, by the solver."""
    params = [float(spec.params(space.baseline.d_model)) for spec in space.specs]
    try:
        found = solve(np.tile(params, (space.positions, 1)), space.names, space.limits)
    except UserError:  # nothing within the limits
        return
    yield Candidate(tuple(found.options), "largest", found.score, found.status, found.gap)
