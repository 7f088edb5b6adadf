"""The argmax of the architecture weights, the choice of PLANER and PAR, which may miss the latency target."""

from __future__ import annotations

from collections.abc import Iterator

from planer.search.scorers.alpha import alpha_scores
from planer.search.space import Candidate, Space


def propose(space: Space) -> Iterator[Candidate]:
    """One network; among equal weights the cheaper option, then the first one."""
    costs = space.limits[0].costs
    scores = alpha_scores(space.alpha).tolist()
    space.scores = space.scores or scores
    options = [max(range(len(row)), key=lambda i: (row[i], -costs[i], -i)) for row in scores]
    yield Candidate(tuple(options), "argmax", sum(row[i] for row, i in zip(scores, options, strict=True)))
