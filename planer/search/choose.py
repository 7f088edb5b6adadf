"""From a trained supernet to the options of one network: scores, incumbents, alternatives.

With ``alpha`` the scores are log softmax of the architecture weights.  With ``replace_one`` the network that they lead
to is only the first incumbent.  Every round scores all single switches of the incumbent.  Those scores add up only as
long as few positions change (a block that destroys the signal hides all others), so the solver is asked for the best
networks that differ from the incumbent at up to all, half, a quarter, ... of the positions, and the one with the lowest
loss of the supernet is the next incumbent.  When none improves on it, the rounds end.

A latency budget is there to be used: a supernet that was trained briefly hardly tells apart what training will, and
capacity left out is quality lost.  So every choice fills its budget but for a given slack, or for twice, four times
and so on as much where no network fills it that far.

Letters in shapes: P positions, N options.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch

from planer.config import SampleConfig, derive_seed
from planer.files import UserError
from planer.search.constraints import Limit
from planer.search.controls import random_network
from planer.search.replace_one import PathLoss, replace_one_scores
from planer.search.solve import Selection, solve

TRIES = 3
"""Networks looked at, per network wanted, before those that fit count as too rare."""

Found = TypeVar("Found")
"""What a search for networks returns."""

Fits = Callable[[Selection], bool]
"""Whether a network is as fast as it should be on the device, whatever the table says."""


class Chooser:
    """The choices within one design space and its limits."""

    def __init__(self, config: SampleConfig, options: Sequence[str], limits: Sequence[Limit]):
        """options: names; limits: the first one is the latency's."""
        self.config, self.options, self.limits = config, list(options), list(limits)
        self.scores: np.ndarray | None = None
        """[P, N], what the last choice went by."""
        self.rounds: list[dict] = []
        """``options`` and ``supernet_nll`` of every incumbent of replace_one."""
        self._loss: PathLoss | None = None

    def by_scores(self, scores: np.ndarray) -> Selection:
        """The best network for given scores [P, N].  Raises UserError when the limits allow none."""
        self.scores = scores
        return self._filling(self.limits[0], self._solve)

    def _filling(self, limit: Limit, solve: Callable[[], Found]) -> Found:
        """What solve finds at the least slack, of the latency limit, at which it finds anything.

        Raises its UserError when it finds nothing under the limit at all.
        """
        slack = self.config.slack
        while slack < 1:
            self.limits[0] = dataclasses.replace(limit, floor=math.ceil((1 - slack) * limit.budget))
            try:
                return solve()
            except UserError:
                slack *= 2
        self.limits[0] = limit
        return solve()

    def by_supernet(self, alpha: torch.Tensor, loss: PathLoss | None = None) -> Selection:
        """The network of a supernet with architecture weights alpha [P, N] and, for replace_one, the loss of its paths.

        Raises UserError when the limits allow none.
        """
        first = self.by_scores(alpha.double().log_softmax(-1).numpy(force=True))
        if self.config.scores == "alpha":
            return first
        self._loss = loss
        return self._improve(first, loss(first.options))

    def again(self, chosen: Selection, limit: Limit) -> Selection:
        """Another choice under another latency limit, starting from the last one.  Raises UserError when there is none.

        By the scores of the last round: budgets are corrected by a few percent, which a few positions make up for.
        """
        if self._loss is None:
            return self._filling(limit, self._solve)
        best, nll = self._filling(limit, lambda: self._best_near(chosen))
        self._note(best, nll)
        return best

    def _improve(self, best: Selection, lowest: float) -> Selection:
        """Rounds of replace_one from an incumbent and its loss."""
        self._note(best, lowest)
        for number in range(1, self.config.rounds + 1):
            description = f"replace-one scores, round {number} of at most {self.config.rounds}"
            self.scores = replace_one_scores(self._loss, best.options, len(self.options), description)
            found, nll = self._best_near(best)
            if nll >= lowest:
                break
            best, lowest = found, nll
            self._note(best, lowest)
        return best

    def solutions(self, chosen: Selection, limit: Limit, fits: Fits) -> list[Selection]:
        """The choice, and the best networks under the limit that differ from it and from each other at min_distance
        positions: num_solutions that fit, or as many as there are."""
        found = [chosen]

        def another() -> Selection:
            apart = ([solution.options for solution in found], self.config.min_distance)
            return self._best_near(chosen, apart)[0] if self._loss else self._solve(apart=apart)

        with contextlib.suppress(UserError):  # no more within the limit, or far enough from the others
            while sum(map(fits, found)) < self.config.num_solutions and len(found) < TRIES * self.config.num_solutions:
                found.append(self._filling(limit, another))
        return list(filter(fits, found))

    def drawn(self, limit: Limit, count: int, seed: int, fits: Fits) -> list[Selection]:
        """So many different networks that fit, from all those that use 98 to 100 % of the latency limit and keep the
        others, each as likely as any; fewer where they are rare, none where there are none."""
        found: dict[tuple[int, ...], Selection] = {}
        positions, others = len(self.scores), self.limits[1:]
        for number in range(TRIES * count):
            try:
                options = random_network(limit, positions, derive_seed(seed, "drawn", number))
            except UserError:
                break
            if tuple(options) not in found and all(other.of(options) <= other.budget for other in others):
                score = float(self.scores[range(positions), options].sum())
                found[tuple(options)] = Selection(options, limit.of(options), score, "random", None)
            if sum(map(fits, found.values())) == count:
                break
        return list(filter(fits, found.values()))

    def supernet_nll(self, choice: Selection) -> float | None:
        """The supernet's loss on a choice; None where scores come without one."""
        return self._loss(choice.options) if self._loss else None

    def _solve(self, **distances) -> Selection:
        if self.config.solver == "argmax":
            self.limits[0].require_reachable(len(self.scores))
            best = [int(np.lexsort((self.limits[0].costs, -row))[0]) for row in self.scores]
            score = float(self.scores[range(len(best)), best].sum())
            return Selection(best, self.limits[0].of(best), score, "argmax", None)
        return solve(self.scores, self.options, self.limits, **distances)

    def _best_near(
        self, incumbent: Selection, apart: tuple[Sequence[Sequence[int]], int] = ((), 0)
    ) -> tuple[Selection, float]:
        """Of the best networks near to the incumbent, the one with the lowest loss, and that loss.

        apart: networks, and at how many positions it must differ from each.  Raises UserError when there is none.
        """
        positions = len(incumbent.options)
        best, lowest = None, math.inf
        for reach in (positions >> halvings for halvings in range(positions.bit_length())):
            try:
                candidate = self._solve(near=(incumbent.options, reach), apart=apart)
            except UserError:  # nothing so near is within the limits and far enough from the others
                if best is None:
                    raise
                break
            nll = self._loss(candidate.options)
            if nll < lowest:
                best, lowest = candidate, nll
        return best, lowest

    def _note(self, incumbent: Selection, nll: float) -> None:
        self.rounds.append({"options": list(incumbent.options), "supernet_nll": nll})
