"""From a trained supernet to networks: scores of options, and the solver's best networks by them.

With ``alpha`` the scores are log softmax of the architecture weights.  With ``replace_one`` their best network is only
the first incumbent.  Every round scores all single switches of the incumbent.  These scores add up only while few
positions change, because a block that destroys the signal hides all others.  So the solver finds the best networks that
differ from the incumbent at up to all, half, a quarter, ... of the positions.  The one with the lowest loss of the
supernet is the next incumbent.  The rounds end when none is better than the incumbent.

A briefly trained supernet underrates capacity, so every network has to use its latency budget, but for the slack.  The
slack is doubled until there is such a network.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from planer.errors import UserError
from planer.search.scorers.alpha import alpha_scores
from planer.search.scorers.replace_one import replace_one_scores
from planer.search.solve import Selection, solve
from planer.search.space import Candidate, Space

Found = TypeVar("Found")
"""Result of a search for networks."""


def propose(space: Space) -> Iterator[Candidate]:
    """The best network, then the best ones that differ from all earlier ones at min_distance positions."""
    chooser = _Chooser(space)
    try:
        best = chooser.best()
    except UserError:  # nothing within the limits
        return
    found = [best]
    while True:
        yield Candidate(tuple(found[-1].options), "solver", found[-1].score, found[-1].status, found[-1].gap)
        try:
            found.append(chooser.another(best, found))
        except UserError:  # no more within the limits, or far enough from the others
            return


class _Chooser:
    """Choices within the limits of one space."""

    def __init__(self, space: Space):
        self.space, self.config = space, space.config
        self.scores: np.ndarray = alpha_scores(space.alpha)

    def best(self) -> Selection:
        """The solver's best network.  Raises UserError when the limits allow none."""
        first = self._filling(lambda limits: self._solve(limits))
        if self.config.scores == "replace_one":
            first = self._improve(first, self.space.supernet_loss(first.options))
        self.space.scores = self.scores.tolist()
        return first

    def another(self, best: Selection, found: Sequence[Selection]) -> Selection:
        """The best network that is far enough from all found ones.  Raises UserError when there is none.

        With replace_one it is near the best network.  The scores are of the incumbent of the last round, which is
        another network where that round found a better one.
        """
        apart = ([selection.options for selection in found], self.config.min_distance)
        if self.config.scores == "alpha":
            return self._filling(lambda limits: self._solve(limits, apart=apart))
        return self._filling(lambda limits: self._best_near(best, limits, apart)[0])

    def _improve(self, best: Selection, lowest: float) -> Selection:
        """Rounds of replace_one from an incumbent and its loss."""
        self._note(best, lowest)
        for number in range(1, self.config.rounds + 1):
            description = f"replace-one scores, round {number} of at most {self.config.rounds}"
            loss, options = self.space.supernet_loss, len(self.space.specs)
            self.scores = replace_one_scores(loss, best.options, options, description)
            found, nll = self._filling(lambda limits, incumbent=best: self._best_near(incumbent, limits))
            if nll >= lowest:
                break
            best, lowest = found, nll
            self._note(best, lowest)
        return best

    def _filling(self, choose: Callable[[list], Found]) -> Found:
        """The result of choose with the least slack of the latency that gives one.

        Raises choose's UserError when the limits alone allow no network.
        """
        limit, *others = self.space.limits
        slack = self.config.slack
        while slack < 1:
            try:
                return choose([dataclasses.replace(limit, floor=math.ceil((1 - slack) * limit.budget)), *others])
            except UserError:
                slack *= 2
        return choose([limit, *others])

    def _solve(self, limits: Sequence, **distances) -> Selection:
        return solve(self.scores, self.space.names, limits, **distances)

    def _best_near(
        self, incumbent: Selection, limits: Sequence, apart: tuple[Sequence[Sequence[int]], int] = ((), 0)
    ) -> tuple[Selection, float]:
        """Of the best networks near to the incumbent, the one with the lowest loss, and that loss.

        apart: networks, and at how many positions it must differ from each.  Raises UserError when there is none.
        """
        positions = len(incumbent.options)
        best, lowest = None, math.inf
        for reach in (positions >> halvings for halvings in range(positions.bit_length())):
            try:
                candidate = self._solve(limits, near=(incumbent.options, reach), apart=apart)
            except UserError:  # nothing so near is within the limits and far enough from the others
                if best is None:
                    raise
                break
            nll = self.space.supernet_loss(candidate.options)
            if nll < lowest:
                best, lowest = candidate, nll
        return best, lowest

    def _note(self, incumbent: Selection, nll: float) -> None:
        self.space.incumbents.append({"options": list(incumbent.options), "supernet_nll": nll})
