"""From scores to one architecture: the best total score within a latency budget, proven, or the paper's argmax.

    maximise   sum_b sum_i s_bi x_bi        s_bi: score of option i at position b
    subject to sum_i x_bi = 1, x_bi in {0, 1},  fixed + sum_b sum_i Lat_i x_bi <= budget

PLANER (arXiv 2208.14580) takes the argmax of the architecture weights, whose latency is not the expected latency that
its loss controlled, so it can miss the target.  The integer program cannot: HiGHS (scipy.optimize.milp) solves it to
a gap of zero, within a second or two for 80 positions and 16 options, and its answer is checked against the budget in
float64.

Ties: scores are the same when they differ by less than a hundred-millionth of their spread.  Among networks of the
same score the cheapest wins; then, wherever two positions could trade options without loss of score, the option named
first in the design space goes to the earlier position.  What ties remain HiGHS breaks, always in the same way.

Letters in shapes: P positions, N options.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from planer.files import UserError

SPREAD = 1e3
"""Scores and costs are scaled to this spread, which makes HiGHS' absolute tolerances (1e-6) a billionth of it."""

OPTIMAL = 0
"""scipy's status of a proven answer."""

SAME_SCORE = 1e-5
"""Scaled scores this close are a tie: above the tolerances, far below any difference that means something."""

NODE_LIMIT = 5000
"""Branch-and-bound nodes per solve; scores of real networks need some hundred.  Scores that are a linear function of
cost are a subset-sum problem instead: there the search ends here, with a gap of about 1e-7, reported.  Unlike a time
limit, it ends in the same place on every machine."""


@dataclass(frozen=True)
class Selection:
    """A chosen network and how it was chosen."""

    options: list[int]
    """The number of the option at every position."""
    estimated_ms: float
    """Fixed cost plus the options' costs, summed exactly as the latency table does."""
    score: float
    """Sum of the chosen scores."""
    status: str
    """``optimal`` (proven), ``node limit`` (within ``gap`` of it), or ``argmax`` (the budget was not looked at)."""
    gap: float | None
    """Relative distance to the best score that could not be ruled out; None for argmax."""


def reachable(costs_ms: Sequence[float], positions: int, fixed_ms: float) -> tuple[float, float]:
    """Smallest and largest latency in ms of a network of so many positions."""
    return (
        math.fsum([fixed_ms, *[min(costs_ms)] * positions]),
        math.fsum([fixed_ms, *[max(costs_ms)] * positions]),
    )


def require_reachable(
    costs_ms: Sequence[float], positions: int, budget_ms: float, fixed_ms: float, baseline_ms: float
) -> None:
    """Raise UserError, naming the reachable range, when no network at all meets the budget."""
    low, high = reachable(costs_ms, positions, fixed_ms)
    if budget_ms < low:
        lowest = math.ceil(low / baseline_ms * 100) / 100  # rounded up, so that the number printed can be reached
        raise UserError(
            f"target {budget_ms / baseline_ms:g} cannot be met: reachable range is {lowest:.2f} to "
            f"{high / baseline_ms:.2f} of the baseline's {baseline_ms:.4g} ms; choose a target in that range"
        )


def select(
    scores: np.ndarray,
    options: Sequence[str],
    costs_ms: Sequence[float],
    budget_ms: float,
    fixed_ms: float,
    solver: str,
    baseline_ms: float,
) -> Selection:
    """Choose one option per position.

    scores: [P, N], higher is better.  options: the N names in column order.  costs_ms: [N], the same at every
    position.  budget_ms: for the whole network.  fixed_ms: what it pays besides its blocks (the stem).
    baseline_ms: what targets are fractions of.  solver: ``milp``, within the budget, or ``argmax``, whatever it costs.
    Raises UserError when no network meets the budget, for either solver, and ValueError for arrays that do not fit.
    """
    scores = np.asarray(scores, dtype=np.float64)
    costs = np.asarray(costs_ms, dtype=np.float64)
    if scores.ndim != 2 or scores.shape[1] != len(options) or costs.shape != (len(options),):
        raise ValueError(
            f"scores are {scores.shape} and costs {costs.shape}; expected [positions, {len(options)}] and "
            f"[{len(options)}], a column for each of {', '.join(options)}"
        )
    if not (np.isfinite(scores).all() and np.isfinite(costs).all()):
        raise ValueError("scores and costs must be finite")
    if solver not in ("milp", "argmax"):
        raise ValueError(f"solver is {solver!r}; allowed: milp, argmax")
    require_reachable(costs.tolist(), len(scores), budget_ms, fixed_ms, baseline_ms)
    if solver == "argmax":
        chosen, status, gap = _best_then_cheapest(scores, costs), "argmax", None
    else:
        chosen, gap = _Problem(scores, costs, budget_ms, fixed_ms).solve()
        status = "optimal" if gap == 0 else "node limit"
    return Selection(chosen, _latency(chosen, costs, fixed_ms), _total(chosen, scores), status, gap)


class _Problem:
    """The integer program, in scaled scores (at most 0) and scaled costs above the cheapest option's (at least 0)."""

    def __init__(self, scores: np.ndarray, costs: np.ndarray, budget_ms: float, fixed_ms: float):
        self.true_scores, self.true_costs, self.budget_ms, self.fixed_ms = scores, costs, budget_ms, fixed_ms
        positions, options = scores.shape
        loss = scores - scores.max(axis=1, keepdims=True)
        self.scores = loss / (-loss.min() or 1.0) * SPREAD
        unit = np.ptp(costs) or 1.0
        self.costs = np.tile((costs - costs.min()) / unit * SPREAD, (positions, 1))
        self.room = (budget_ms - reachable(costs, positions, fixed_ms)[0]) / unit * SPREAD
        variables = np.arange(positions * options)
        one_hot = csr_array((np.ones(positions * options), (variables // options, variables)))
        self.one_option = LinearConstraint(one_hot, 1, 1)

    def solve(self) -> tuple[list[int], float]:
        """The best network within the budget and the relative gap of its score."""
        chosen, gap = self._minimise(-self.scores, -np.inf)
        lowest = _total(chosen, self.scores) - SAME_SCORE
        cheaper, _ = self._minimise(self.costs, lowest)
        if _total(cheaper, self.scores) >= lowest and self._latency(cheaper) < self._latency(chosen):
            chosen = cheaper
        return self._in_order(chosen), gap

    def _minimise(self, objective: np.ndarray, lowest_score: float) -> tuple[list[int], float]:
        """The network of least objective [P, N] within the budget, scoring lowest_score or more, and its gap.

        HiGHS may overrun a constraint by its tolerance.  While the answer is over the true budget, the limit given to
        it shrinks; when nothing is left, the cheapest network is within the budget by require_reachable.
        """
        limit, step = self.room, 1e-6
        score = LinearConstraint(self.scores.reshape(1, -1), lowest_score, np.inf)
        while True:
            result = milp(
                objective.ravel(),
                integrality=1,
                bounds=Bounds(0, 1),
                constraints=[self.one_option, score, LinearConstraint(self.costs.reshape(1, -1), -np.inf, limit)],
                options={"mip_rel_gap": 0, "node_limit": NODE_LIMIT},
            )
            if result.x is None:
                return _best_then_cheapest(-np.tile(self.true_costs, (len(self.scores), 1)), -self.true_scores), 0.0
            chosen = result.x.reshape(self.scores.shape).argmax(axis=1).tolist()
            if self._latency(chosen) <= self.budget_ms:
                return chosen, 0.0 if result.status == OPTIMAL else float(result.mip_gap)
            limit, step = limit - step, 2 * step

    def _latency(self, chosen: list[int]) -> float:
        return _latency(chosen, self.true_costs, self.fixed_ms)

    def _in_order(self, chosen: list[int]) -> list[int]:
        """Trade options between positions while that brings an earlier option forward and costs no score."""
        chosen = list(chosen)
        pairs = [(a, b) for a in range(len(chosen)) for b in range(a + 1, len(chosen))]
        moved = True
        while moved:
            moved = False
            for a, b in pairs:
                i, k = chosen[a], chosen[b]
                gain = self.scores[a, k] + self.scores[b, i] - self.scores[a, i] - self.scores[b, k]
                if k < i and gain >= 0:
                    chosen[a], chosen[b], moved = k, i, True
        return chosen


def _best_then_cheapest(scores: np.ndarray, costs: np.ndarray) -> list[int]:
    """Per position the highest score [P, N]; among equals the lowest cost [N] or [P, N], then the first named."""
    costs = np.broadcast_to(costs, scores.shape)
    return [int(np.lexsort((cost, -row))[0]) for row, cost in zip(scores, costs, strict=True)]


def _latency(chosen: list[int], costs: np.ndarray, fixed_ms: float) -> float:
    return math.fsum([fixed_ms, *costs[chosen].tolist()])


def _total(chosen: list[int], scores: np.ndarray) -> float:
    return math.fsum(scores[np.arange(len(chosen)), chosen].tolist())
