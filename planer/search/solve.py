"""From scores to one network: the largest total score within all limits, by an integer program.

    maximise   sum_b sum_i s_bi x_bi        s_bi: score of option i at position b
    subject to sum_i x_bi = 1, x_bi in {0, 1},  and for every limit  fixed + sum_b sum_i cost_i x_bi <= budget

PLANER (arXiv 2208.14580) takes the argmax of the architecture weights, whose latency is not the expected latency that
its loss controlled, so it can miss the target.  The integer program always meets it: costs and budgets are whole
numbers, and OR-Tools' CP-SAT is exact for whole numbers.  Scores are rounded to whole numbers here.

Positions with the same scores are interchangeable.  The program counts how many of them take each option, so that the
solver need not try their permutations.  They take their options in the order of the design space.  Among networks of
the same score the cheapest by the first limit wins.  CP-SAT breaks the remaining ties, always in the same way.

Letters in shapes: P positions, N options, G groups of interchangeable positions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ortools.sat.python import cp_model

from planer.errors import UserError
from planer.search.constraints import Limit

SPREAD = 2**40
"""The largest difference between scores of one position, in whole numbers.  A thousand positions sum to 2**50, far
within the 63 bits of the solver and the 53 bits of its bound."""

WORK = 1.0
"""Deterministic seconds of CP-SAT per solve, a few seconds of a processor.  Scores of real networks need a tenth.
Scores that are a linear function of cost make a subset-sum problem, whose search can reach this limit; its gap is then
reported.  Unlike a time limit, this gives the same network on every machine."""


@dataclass(frozen=True)
class Selection:
    """A chosen network and how it was chosen."""

    options: list[int]
    """The number of the option at every position."""
    cost: int
    """By the first limit."""
    score: float
    """Sum of the chosen scores."""
    status: str
    """``optimal`` (proven), or ``cut short`` (the search ended at its work limit, within ``gap`` of the best)."""
    gap: float
    """Upper bound of the score that a better network could regain, over the score lost against the best option at
    every position."""


def solve(
    scores: np.ndarray,
    options: Sequence[str],
    limits: Sequence[Limit],
    *,
    near: tuple[Sequence[int], int] | None = None,
    apart: tuple[Sequence[Sequence[int]], int] = ((), 0),
) -> Selection:
    """Choose one option per position.

    scores: [P, N], higher is better.  options: the N names in column order.  limits: at least one.  near: a network,
    and the most positions at which the choice may differ from it.  apart: networks, and the fewest positions at which
    the choice must differ from each.  Raises UserError when no network keeps the limits, and ValueError for arrays that
    do not fit.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 2 or any(scores.shape[1] != len(row) for row in (options, *(limit.costs for limit in limits))):
        raise ValueError(
            f"scores are {scores.shape} and costs {[len(limit.costs) for limit in limits]}; expected "
            f"[positions, {len(options)}] and a cost for each of {', '.join(options)}"
        )
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite")
    for limit in limits:
        limit.require_reachable(len(scores))
    loss = scores.max(axis=1, keepdims=True) - scores
    loss = np.rint(loss / (loss.max() or 1.0) * SPREAD).astype(np.int64)
    program = _Program(loss, limits, near, apart)
    best, bound = program.minimise(loss)
    if best is None:
        raise UserError(_infeasible(limits, len(scores), apart, proven=bound == math.inf))
    # The loss as a second term changes nothing where the first search was optimal, and guides the second.
    cheapest, _ = program.minimise(loss + np.subtract(limits[0].costs, min(limits[0].costs)), loss, best)
    chosen = best if cheapest is None else cheapest
    lost = int(_total(chosen, loss))
    gap = (lost - bound) / lost if lost > bound else 0.0
    status = "cut short" if gap else "optimal"
    return Selection(chosen, limits[0].of(chosen), _total(chosen, scores), status, gap)


class _Program:
    """The integer program: how many positions of each group take each option, [G, N]."""

    def __init__(
        self,
        loss: np.ndarray,
        limits: Sequence[Limit],
        near: tuple[Sequence[int], int] | None,
        apart: tuple[Sequence[Sequence[int]], int],
    ):
        networks = [*([near[0]] if near else []), *apart[0]]
        self.groups: dict[tuple, list[int]] = {}
        """Positions by loss of every option and by option in every network to stay near to or apart from."""
        for position, row in enumerate(loss.tolist()):
            key = (*row, *(network[position] for network in networks))
            self.groups.setdefault(key, []).append(position)
        self.model = cp_model.CpModel()
        self.counts = [[self.model.new_int_var(0, len(g), "") for _ in loss[0]] for g in self.groups.values()]
        for group, counts in zip(self.groups.values(), self.counts, strict=True):
            self.model.add(sum(counts) == len(group))
        for limit in limits:
            least = cp_model.INT_MIN if limit.floor is None else limit.floor - limit.fixed
            cost = self._sum(np.broadcast_to(limit.costs, loss.shape))
            self.model.add_linear_constraint(cost, least, limit.budget - limit.fixed)
        same = [self._sum(np.arange(loss.shape[1]) == np.array(network)[:, None]) for network in networks]
        if near:
            self.model.add(same.pop(0) >= len(loss) - near[1])
        for one in same:
            self.model.add(one <= len(loss) - apart[1])

    def _sum(self, amounts: np.ndarray) -> cp_model.LinearExpr:
        """The sum of amounts [P, N], the same within each group, over the options chosen."""
        firsts = [positions[0] for positions in self.groups.values()]
        variables = [count for counts in self.counts for count in counts]
        return cp_model.LinearExpr.weighted_sum(variables, amounts[firsts].astype(np.int64).ravel().tolist())

    def minimise(
        self, amounts: np.ndarray, loss: np.ndarray | None = None, start: list[int] | None = None
    ) -> tuple[list[int] | None, float]:
        """The network with the least sum of amounts [P, N], and a lower bound of that sum.

        loss and start: a network to start from, whose loss is not to be exceeded.  The network is None where none was
        found; the bound is then infinite if there is none.
        """
        if start is not None:
            self.model.add(self._sum(loss) <= int(_total(start, loss)))
            for positions, counts in zip(self.groups.values(), self.counts, strict=True):
                for option, count in enumerate(counts):
                    self.model.add_hint(count, sum(start[position] == option for position in positions))
        self.model.minimize(self._sum(amounts))
        solver = cp_model.CpSolver()
        solver.parameters.num_workers = 1
        solver.parameters.random_seed = 0
        solver.parameters.max_deterministic_time = WORK
        status = solver.solve(self.model)
        if status == cp_model.MODEL_INVALID:
            raise ValueError(f"the solver refuses these costs: {self.model.validate()}")
        if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            return None, math.inf if status == cp_model.INFEASIBLE else -math.inf
        chosen = [0] * len(amounts)
        for positions, counts in zip(self.groups.values(), self.counts, strict=True):
            taken = np.repeat(np.arange(len(counts)), [solver.value(count) for count in counts])
            for position, option in zip(positions, taken.tolist(), strict=True):
                chosen[position] = option
        return chosen, solver.best_objective_bound


def _infeasible(limits: Sequence[Limit], positions: int, apart: tuple[Sequence, int], proven: bool) -> str:
    ranges = ", ".join(f"{limit.name} {limit.share:.4g} (alone {limit.range(positions)})" for limit in limits)
    distance = f", {apart[1]} positions away from {len(apart[0])} networks" if apart[0] else ""
    found = "no network keeps all limits at once" if proven else "found no network that keeps all limits at once"
    return f"{found}{distance}: {ranges}; loosen one of them"


def _total(chosen: list[int], amounts: np.ndarray) -> float:
    return math.fsum(amounts[np.arange(len(chosen)), chosen].tolist())
