"""The solver against trying every network: limits, optimality and repeatability."""

from __future__ import annotations

import importlib
import itertools
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from planer.errors import UserError
from planer.search.constraints import Limit

module = importlib.import_module("planer.search.solve")


def cost(chosen, costs, fixed):
    return fixed + sum(costs[i] for i in chosen)


def every_network(scores, costs, budget, fixed):
    """(score, cost, choice) of every network within the budget."""
    positions, options = np.shape(scores)
    for chosen in itertools.product(range(options), repeat=positions):
        total = cost(chosen, costs, fixed)
        if total <= budget:
            yield math.fsum(scores[b][i] for b, i in enumerate(chosen)), total, list(chosen)


def solve(scores, costs, budget, fixed=0, baseline=100, more=(), floor=None, **distances):
    limit = Limit("target", costs, fixed, budget, baseline, "ps", floor=floor)
    return module.solve(np.array(scores), [f"option_{i}" for i in range(len(costs))], [limit, *more], **distances)


ANY_SCORE = st.floats(-20, 0)
ANY_COST = st.one_of(st.integers(0, 10**10), st.integers(10**9, 10**9 + 20))
"""Picoseconds: up to 10 ms, often with tiny differences."""


@st.composite
def problems(draw, score=ANY_SCORE, cost_=ANY_COST):
    """Scores [P, N], costs [N], fixed cost, and a budget that some network meets, often exactly."""
    positions, options = draw(st.integers(1, 4)), draw(st.integers(2, 4))
    scores = [draw(st.lists(score, min_size=options, max_size=options)) for _ in range(positions)]
    if draw(st.booleans()):
        scores[-1] = scores[0]
    costs = draw(st.lists(cost_, min_size=options, max_size=options))
    fixed = draw(st.integers(0, 5 * 10**9))
    if draw(st.booleans()):
        network = draw(st.lists(st.integers(0, options - 1), min_size=positions, max_size=positions))
        return scores, costs, fixed, cost(network, costs, fixed)
    low, high = (fixed + positions * pick(costs) for pick in (min, max))
    return scores, costs, fixed, low + int(draw(st.floats(0, 1.1)) * (high - low))


def tolerance(scores):
    """Largest error of a sum of scores that were rounded to whole numbers."""
    return len(scores) * 2**-39 * max(max(row) - min(row) for row in scores) + 1e-12


@settings(max_examples=60)
@given(problems())
def test_never_over_budget_and_never_worse_than_brute_force(problem):
    scores, costs, fixed, budget = problem
    selection = solve(scores, costs, budget, fixed)
    best = max(score for score, _, _ in every_network(scores, costs, budget, fixed))
    assert selection.cost == cost(selection.options, costs, fixed) <= budget
    assert selection.score == pytest.approx(math.fsum(scores[b][i] for b, i in enumerate(selection.options)), abs=1e-12)
    assert selection.score >= best - tolerance(scores)
    assert (selection.status, selection.gap) == ("optimal", 0)
    assert solve(scores, costs, budget, fixed) == selection


@settings(max_examples=60)
@given(problems(score=st.sampled_from([-2.0, -1.0, 0.0]), cost_=st.sampled_from([0, 10, 15, 30])))
def test_equal_scores_go_to_the_cheapest_network(problem):
    scores, costs, fixed, budget = problem
    selection = solve(scores, costs, budget, fixed)
    best, saved = max((score, -total) for score, total, _ in every_network(scores, costs, budget, fixed))
    assert (selection.score, selection.cost) == (best, -saved)


@settings(max_examples=25)
@given(problems(), st.randoms())
def test_the_order_of_options_does_not_change_the_score(problem, random):
    scores, costs, fixed, budget = problem
    order = list(range(len(costs)))
    random.shuffle(order)
    shuffled = solve([[row[i] for i in order] for row in scores], [costs[i] for i in order], budget, fixed)
    straight = solve(scores, costs, budget, fixed)
    assert shuffled.score == pytest.approx(straight.score, abs=tolerance(scores))


def test_equal_positions_take_options_in_the_order_of_the_design_space():
    """Equal up to a constant; the third position differs."""
    scores = [[0.0, 1.0, 2.0], [5.0, 6.0, 7.0], [9.0, 0.0, 0.0], [0.0, 1.0, 2.0], [-1.0, 0.0, 1.0]]
    selection = solve(scores, [0, 10, 20], 50)
    assert selection.score == 5 + 4 + 9
    assert selection.options[2] == 0 and selection.options == sorted(selection.options[:2]) + [0] + sorted(
        selection.options[3:]
    )
    others = [selection.options[b] for b in (0, 1, 3, 4)]
    assert others == sorted(others) and others[0] < others[-1]


def test_a_budget_is_exact_to_one_unit():
    costs = [100_000_001, 200_000_003, 300_000_007]
    baseline = [1, 2] * 6
    budget = cost(baseline, costs, 700_000_001)
    scores = np.zeros((12, 3))
    scores[np.arange(12), baseline] = 1.0
    selection = solve(scores, costs, budget, 700_000_001)
    assert (selection.options, selection.cost) == (baseline, budget)
    assert solve(scores, costs, budget - 1, 700_000_001).score < 12


def test_costs_that_differ_by_a_billionth_are_distinguished():
    """One unit more at any of 24 positions has a better score and exceeds the budget."""
    assert solve([[0.0, 1.0, 0.0]] * 24, [0, 1, 10**9], 0).options == [0] * 24
    scores = np.random.default_rng(0).normal(size=(6, 5))
    costs = [0, *(10**9 + k for k in range(4))]
    selection = solve(scores, costs, 3 * 10**9 + 1)
    assert (selection.status, selection.gap) == ("optimal", 0)
    assert selection.score == pytest.approx(max(every_network(scores, costs, 3 * 10**9 + 1, 0))[0], abs=1e-9)


def test_scores_that_differ_by_a_billionth_are_distinguished():
    scores = [[-1.0, 0.0, 1e-9], [-1.0, 0.0, 2e-9]]
    assert solve(scores, [0, 1, 2], 3).options == [1, 2]


def test_the_smallest_reachable_budget_gives_the_cheapest_network():
    costs, low = [3, 1, 2], 8
    selection = solve(np.random.default_rng(0).normal(size=(7, 3)), costs, low, 1)
    assert (selection.options, selection.cost) == ([1] * 7, low)
    with pytest.raises(UserError, match="target 0.07 cannot be met: reachable range is 0.08 to 0.22"):
        solve(np.zeros((7, 3)), costs, low - 1, 1)


def test_negative_costs_are_allowed():
    """On a noisy device a block may be measured below zero."""
    selection = solve([[0.0, 1.0, 5.0]] * 2, [-10, 5, 90], 0, 5)
    assert selection.options == [0, 1]


def test_an_unfinished_solution_reports_its_gap(monkeypatch):
    """Scores are almost linear in the costs, nearly a subset-sum problem."""
    costs = np.sort(np.random.default_rng(0).integers(0, 10**9, 16))
    scores = costs + np.random.default_rng(1).normal(size=(40, 16)) * 1e7
    problem = (scores, costs.tolist(), 20 * 10**9)
    monkeypatch.setattr(module, "WORK", 0.1)
    selection = solve(*problem)
    assert selection.status == "cut short"
    assert 0 < selection.gap < 0.01
    assert selection.cost <= 20 * 10**9
    assert solve(*problem) == selection
    monkeypatch.setattr(module, "WORK", 1e-6)
    with pytest.raises(UserError, match="^found no network that keeps all limits at once: target"):
        solve(*problem)


@pytest.mark.parametrize("floor", [None, 137 * 10**8])
def test_a_large_space_is_solved_to_the_bound_of_its_relaxation(floor):
    """80 positions of 16 options: the gap to the linear relaxation is at most one position's spread."""
    generator = np.random.default_rng(1)
    costs = generator.integers(0, 2 * 10**9, 16)
    scores = generator.normal(size=(80, 16))
    budget = 140 * 10**8
    selection = solve(scores, costs.tolist(), budget, 400_000_000, floor=floor)
    assert selection.status == "optimal"
    # Lagrangian bound: for every multiplier m, max score <= sum_b max_i (s_bi - m c_i) + m (budget - fixed).
    room = (budget - 400_000_000) / 1e9
    bound = min((scores - m * costs / 1e9).max(axis=1).sum() + m * room for m in np.linspace(0, 20, 2001))
    assert bound - np.ptp(scores, axis=1).max() <= selection.score <= bound + 1e-9


@pytest.mark.parametrize(
    ("scores", "costs"),
    [
        (np.zeros((2, 3)), [1, 2]),
        (np.zeros(3), [1, 2, 3]),
        (np.array([[np.nan, 0.0]]), [1, 2]),
        (np.zeros((2, 2)), [1, 2.5]),
        (np.zeros((2, 2)), [1, 2**62]),
    ],
)
def test_misuse_is_refused(scores, costs):
    with pytest.raises(ValueError):
        solve(scores, costs, 10)


def distance(a, b):
    return sum(x != y for x, y in zip(a, b, strict=True))


@st.composite
def confined_problems(draw):
    """A problem, a second limit, and distances: at most to one network, at least to another."""
    scores, costs, fixed, budget = problem = draw(problems())
    positions, options = np.shape(scores)
    network = st.lists(st.integers(0, options - 1), min_size=positions, max_size=positions)
    distance = st.integers(0, positions)
    size = draw(st.lists(ANY_COST, min_size=options, max_size=options))
    most = cost(draw(network), size, 5)
    return problem, (size, most), (draw(network), draw(distance)), (draw(network), draw(distance))


@settings(max_examples=60)
@given(confined_problems())
def test_several_limits_and_distances_against_brute_force(confined):
    (scores, costs, fixed, budget), (size, most), near, (apart, away) = confined
    limit = Limit("params", size, 5, most, 20, "parameters")
    allowed = [
        (score, chosen)
        for score, _, chosen in every_network(scores, costs, budget, fixed)
        if limit.of(chosen) <= limit.budget and distance(chosen, near[0]) <= near[1] and distance(chosen, apart) >= away
    ]
    if not allowed:
        with pytest.raises(UserError, match="no network keeps all limits at once"):
            solve(scores, costs, budget, fixed, more=[limit], near=near, apart=([apart], away))
        return
    selection = solve(scores, costs, budget, fixed, more=[limit], near=near, apart=([apart], away))
    assert any(selection.options == chosen for _, chosen in allowed)
    assert selection.score >= max(allowed)[0] - tolerance(scores)


@settings(max_examples=40)
@given(problems(), st.floats(0, 1))
@example(([[0.0, 0.0]], [0, 1], 0, 1), 1.0)
def test_a_floor_against_brute_force(problem, share):
    scores, costs, fixed, budget = problem
    low = fixed + len(scores) * min(costs)
    floor = low + math.ceil(share * (budget - low))
    allowed = [score for score, total, _ in every_network(scores, costs, budget, fixed) if total >= floor]
    if not allowed:
        with pytest.raises(UserError):
            solve(scores, costs, budget, fixed, floor=floor)
        return
    selection = solve(scores, costs, budget, fixed, floor=floor)
    assert floor <= selection.cost <= budget
    assert selection.score >= max(allowed) - tolerance(scores)


def test_limits_that_exclude_each_other_name_the_range_of_each():
    more = [Limit("params", [5, 1], 0, 5, 10, "parameters")]
    with pytest.raises(UserError) as error:
        solve(np.zeros((4, 2)), [1, 5], 5, 1, baseline=10, more=more)
    assert str(error.value) == (
        "no network keeps all limits at once: target 0.5 (alone 0.50 to 2.10), params 0.5 (alone 0.40 to 2.00); "
        "loosen one of them"
    )


def test_each_alternative_is_the_best_at_its_distance():
    """Four solutions that differ at two or more positions, with falling scores."""
    scores = np.random.default_rng(3).normal(size=(5, 4))
    costs = [0, 1, 2, 3]
    found = []
    for _ in range(4):
        found.append(solve(scores, costs, 7, apart=([s.options for s in found], 2)))
        best = max(
            score
            for score, _, chosen in every_network(scores, costs, 7, 0)
            if all(distance(chosen, earlier.options) >= 2 for earlier in found[:-1])
        )
        assert found[-1].score == pytest.approx(best)
    assert [s.score for s in found] == sorted((s.score for s in found), reverse=True)
