"""From scores to one architecture: the best total score within every limit, proven, or the paper's argmax.

    maximise   sum_b sum_i s_bi x_bi        s_bi: score of option i at position b
    subject to sum_i x_bi = 1, x_bi in {0, 1},  and for every limit  fixed + sum_b sum_i cost_i x_bi <= budget

PLANER (arXiv 2208.14580) takes the argmax of the architecture weights, whose latency is not the expected latency that
its loss controlled, so it can miss the target.  The integer program cannot: HiGHS (scipy.optimize.milp) solves it to
a gap of zero, within a second or two for 80 positions and 16 options, and its answer is checked against the budgets in
float64.

Ties: scores are the same when they differ by less than a hundred-millionth of their spread.  Among networks of the
same score the cheapest by the first limit wins; then, wherever two positions could trade options without loss of
score, the option named first in the design space goes to the earlier position.  What ties remain HiGHS breaks, always
in the same way.

Letters in shapes: P positions, N options, L limits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array, eye_array, hstack

from planer.files import UserError
from planer.search.constraints import Limit

SPREAD = 1e3
"""Objectives are scaled to this spread, which makes HiGHS' absolute gap (1e-6) a billionth of it."""

COST_SPREAD = 0.1
"""Costs in limits are scaled to this spread: HiGHS takes 1e-6 of an option for none of it, and with larger costs such
crumbs would meet a limit that whole options miss, where it then overlooks networks that keep it."""

SLACK = 1e-6
"""By how much limits are loosened for HiGHS, in scaled costs: its own tolerance, so that it loses no network.  What it
then answers is checked against the true limits."""

OPTIMAL = 0
"""scipy's status of a proven answer."""

SAME_SCORE = 1e-5
"""Scaled scores this close are a tie: above the tolerances, far below any difference that means something."""

STRIKES = 16
"""Answers over a limit by less than HiGHS can tell before the limits are tightened by twice that.  Random
costs needed none; many costs a hundred-millionth of their spread apart needed dozens."""

NODE_LIMIT = 5000
"""Branch-and-bound nodes per solve; scores of real networks need some hundred.  Scores that are a linear function of
cost are a subset-sum problem instead: there the search ends here, with a gap of about 1e-7, reported.  Unlike a time
limit, it ends in the same place on every machine."""


@dataclass(frozen=True)
class Selection:
    """A chosen network and how it was chosen."""

    options: list[int]
    """The number of the option at every position."""
    cost: float
    """By the first limit."""
    score: float
    """Sum of the chosen scores."""
    status: str
    """``optimal`` (proven), ``node limit`` (the search was cut short, within ``gap`` of it), ``argmax`` (no limit was
    looked at) or ``random``."""
    gap: float | None
    """Relative distance to the best score that could not be ruled out; None for argmax and random."""


def solve(
    scores: np.ndarray,
    options: Sequence[str],
    limits: Sequence[Limit],
    *,
    near: tuple[Sequence[int], int] | None = None,
    apart: tuple[Sequence[Sequence[int]], int] = ((), 0),
) -> Selection:
    """Choose one option per position.

    scores: [P, N], higher is better.  options: the N names in column order.  limits: at least one, all of them kept by
    ``milp`` and none by ``argmax``.  near: a network, and at how many positions the choice may differ from it.  apart:
    networks, and at how many positions the choice must differ from each of them.  Raises UserError when no network
    keeps the limits, and ValueError for arrays that do not fit.
    """
    scores = np.asarray(scores, dtype=np.float64)
    costs = np.asarray([limit.costs for limit in limits], dtype=np.float64)
    if scores.ndim != 2 or scores.shape[1] != len(options) or costs.shape != (len(limits), len(options)):
        raise ValueError(
            f"scores are {scores.shape} and costs {costs.shape}; expected [positions, {len(options)}] and "
            f"[limits, {len(options)}], a column for each of {', '.join(options)}"
        )
    if not (np.isfinite(scores).all() and np.isfinite(costs).all()):
        raise ValueError("scores and costs must be finite")
    for limit in limits:
        limit.require_reachable(len(scores))
    chosen, gap = _Problem(scores, limits, near, apart).solve()
    status = "optimal" if gap == 0 else "limit"
    return Selection(chosen, limits[0].of(chosen), _total(chosen, scores), status, gap)


class _Problem:
    """The integer program, in scaled scores (at most 0) and scaled costs above the cheapest option's (at least 0)."""

    def __init__(
        self,
        scores: np.ndarray,
        limits: Sequence[Limit],
        near: tuple[Sequence[int], int] | None,
        apart: tuple[Sequence[Sequence[int]], int],
    ):
        self.limits, self.near, self.apart = limits, near, apart
        positions, options = scores.shape
        loss = scores - scores.max(axis=1, keepdims=True)
        self.scores = loss / (-loss.min() or 1.0) * SPREAD
        units = [(np.ptp(limit.costs) or 1.0) / COST_SPREAD for limit in limits]
        scaled = [np.subtract(x.costs, min(x.costs)) / unit for x, unit in zip(limits, units, strict=True)]
        least = [limit.reachable(positions)[0] for limit in limits]
        self.room, self.floor = (
            np.array([(x - low) / unit for x, low, unit in zip(ends, least, units, strict=True)])
            for ends in ([limit.budget for limit in limits], [limit.floor for limit in limits])
        )
        self.costs = np.stack(scaled)
        variables = np.arange(positions * options)
        one_hot = csr_array((np.ones(positions * options), (variables // options, variables)))
        self.constraints = [LinearConstraint(one_hot, 1, 1)]
        if near is not None:
            self.constraints.append(LinearConstraint(self._same([near[0]]), positions - near[1], positions))
        if apart[0]:
            self.constraints.append(LinearConstraint(self._same(apart[0]), 0, positions - apart[1]))

    def _same(self, networks: Sequence[Sequence[int]]) -> csr_array:
        """Rows that count the positions at which the choice is the network's."""
        positions, options = self.scores.shape
        rows = [np.zeros((positions, options)) for _ in networks]
        for row, network in zip(rows, networks, strict=True):
            row[np.arange(positions), network] = 1
        return csr_array(np.stack(rows).reshape(len(rows), -1))

    def solve(self) -> tuple[list[int], float]:
        """The best network within the limits and the relative gap of its score."""
        found = self._minimise(-self.scores, -np.inf)
        if found is None:
            raise UserError(self._infeasible())
        chosen, gap = found
        lowest = _total(chosen, self.scores) - SAME_SCORE
        cost = np.tile(self.costs[0], (len(self.scores), 1)) * (SPREAD / COST_SPREAD)
        cheaper, _ = self._minimise(cost, lowest) or found
        if _total(cheaper, self.scores) >= lowest and self.limits[0].of(cheaper) < self.limits[0].of(chosen):
            chosen = cheaper
        return self._in_order(chosen), gap

    def _minimise(self, objective: np.ndarray, lowest_score: float) -> tuple[list[int], float] | None:
        """The network of least objective [P, N] within the limits, scoring lowest_score or more, and its gap.

        HiGHS may overrun a limit by its tolerance.  Such an answer is struck out and HiGHS is asked again; when that
        happens too often, the limits are tightened instead, and the last answer struck out bounds the gap.  When
        nothing is left there may still be the cheapest network, which can meet its budget exactly.
        """
        score = LinearConstraint(csr_array(self.scores.reshape(1, -1)), lowest_score, np.inf)
        constraints = [*self.constraints, self._within(SLACK), score]
        for _ in range(STRIKES):
            answer = _answer(objective, constraints)
            missed = answer and next((limit for limit in self.limits if not limit.kept_by(answer[0])), None)
            if not missed:
                return answer
            constraints = _without(answer[0], missed, constraints)
        found = _answer(objective, [*self.constraints, self._within(-2 * SLACK), score])
        cheapness = np.broadcast_to(-self.costs[0], self.scores.shape)
        chosen = found[0] if found else _best_then_cheapest(cheapness, -self.scores)
        if not self._allowed(chosen):
            return None
        reached, bound = _total(chosen, objective), _total(answer[0], objective) * (1 - answer[1])
        return chosen, (reached - bound) / reached if reached > bound else 0.0

    def _within(self, slack: float) -> LinearConstraint:
        """The limits, loosened by slack."""
        rows = csr_array(np.tile(self.costs, len(self.scores)))
        return LinearConstraint(rows, np.minimum(self.floor, self.room) - slack, self.room + slack)

    def _allowed(self, chosen: list[int]) -> bool:
        """Whether a network keeps limits and distances."""

        def distance(network: Sequence[int]) -> int:
            return sum(a != b for a, b in zip(chosen, network, strict=True))

        return (
            all(limit.kept_by(chosen) for limit in self.limits)
            and (self.near is None or distance(self.near[0]) <= self.near[1])
            and all(distance(network) >= self.apart[1] for network in self.apart[0])
        )

    def _infeasible(self) -> str:
        positions = len(self.scores)
        ranges = ", ".join(f"{x.name} {x.share:g} (alone {x._range(positions)})" for x in self.limits)
        distance = f", {self.apart[1]} positions away from {len(self.apart[0])} networks" if self.apart[0] else ""
        return f"no network keeps all limits at once{distance}: {ranges}; loosen one of them"

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
                    traded = list(chosen)
                    traded[a], traded[b] = k, i
                    if self._allowed(traded):
                        chosen, moved = traded, True
        return chosen


def _answer(objective: np.ndarray, constraints: list[LinearConstraint]) -> tuple[list[int], float] | None:
    """The network of least objective [P, N] that HiGHS finds, and its gap.

    Without presolve, which fails ("Solve error") on some limits as close as a strike leaves them.
    """
    variables = constraints[0].A.shape[1]
    result = milp(
        np.pad(objective.ravel(), (0, variables - objective.size)),
        integrality=np.ones(variables),
        bounds=Bounds(0, 1),
        constraints=constraints,
        options={"mip_rel_gap": 0.0, "node_limit": NODE_LIMIT, "presolve": False},
    )
    if result.x is None:
        return None
    chosen = result.x[: objective.size].reshape(objective.shape).argmax(axis=1).tolist()
    return chosen, 0.0 if result.status == OPTIMAL else float(result.mip_gap)


def _without(chosen: list[int], missed: Limit, constraints: list[LinearConstraint]) -> list[LinearConstraint]:
    """The constraints, and that no network misses a limit for the same reason as this one.

    Count k is at how many positions an option costs as much as option k or more.  A network whose counts are all as
    high as those of one over budget costs no less: one count has to be lower (below a floor: higher).  Which one, a
    new variable per count says, z_k: count_k <= its own here - 1 if z_k = 1, and sum_k z_k >= 1.
    """
    positions, costs = len(chosen), np.asarray(missed.costs)
    sign = 1 if missed.of(chosen) > missed.budget else -1
    counted = sign * (costs >= costs[:, None])
    free = csr_array((len(costs), constraints[0].A.shape[1] - positions * len(costs)))
    counts = hstack([csr_array(np.tile(counted, positions)), free, positions * eye_array(len(costs))])
    one = hstack([csr_array((1, constraints[0].A.shape[1])), np.ones((1, len(costs)))])
    return [
        *(LinearConstraint(hstack([x.A, csr_array((x.A.shape[0], len(costs)))]), x.lb, x.ub) for x in constraints),
        LinearConstraint(counts, -np.inf, counted[:, chosen].sum(axis=1) - 1 + positions),
        LinearConstraint(one, 1, np.inf),
    ]


def _best_then_cheapest(scores: np.ndarray, costs: np.ndarray) -> list[int]:
    """Per position the highest score [P, N]; among equals the lowest cost [N] or [P, N], then the first named."""
    costs = np.broadcast_to(costs, scores.shape)
    return [int(np.lexsort((cost, -row))[0]) for row, cost in zip(scores, costs, strict=True)]


def _total(chosen: list[int], scores: np.ndarray) -> float:
    return math.fsum(scores[np.arange(len(chosen)), chosen].tolist())
