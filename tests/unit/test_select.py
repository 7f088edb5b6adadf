"""Selection: never over budget, never worse than trying every network, and always the same answer."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from planer.files import UserError
from planer.search import select as select_module
from planer.search.select import Limit, select


def latency(chosen, costs, fixed):
    return math.fsum([fixed, *[costs[i] for i in chosen]])


def every_network(scores, costs, budget, fixed):
    """(score, latency, choice) of every network within the budget."""
    positions, options = np.shape(scores)
    for chosen in itertools.product(range(options), repeat=positions):
        ms = latency(chosen, costs, fixed)
        if ms <= budget:
            yield math.fsum(scores[b][i] for b, i in enumerate(chosen)), ms, list(chosen)


def reachable(costs, positions, fixed):
    return Limit("target", costs, fixed, 0.0, 1.0).reachable(positions)


def solve(scores, costs, budget, fixed=0.0, solver="milp", baseline=1.0, more=(), **distances):
    limit = Limit("target", costs, fixed, budget, baseline)
    return select(np.array(scores), names(costs), [limit, *more], solver, **distances)


def names(costs):
    return [f"option_{i}" for i in range(len(costs))]


ANY_SCORE = st.floats(-20, 0)
ANY_COST = st.floats(0, 10).map(lambda ms: round(ms, 6))


@st.composite
def problems(draw, score=ANY_SCORE, cost=ANY_COST):
    """Scores [P, N], costs [N], fixed cost, and a budget that some network meets, often with nothing to spare."""
    positions, options = draw(st.integers(1, 4)), draw(st.integers(2, 4))
    scores = [draw(st.lists(score, min_size=options, max_size=options)) for _ in range(positions)]
    costs = draw(st.lists(cost, min_size=options, max_size=options))
    fixed = draw(st.floats(0, 5))
    if draw(st.booleans()):
        network = draw(st.lists(st.integers(0, options - 1), min_size=positions, max_size=positions))
        return scores, costs, fixed, latency(network, costs, fixed)
    low, high = reachable(costs, positions, fixed)
    return scores, costs, fixed, low + draw(st.floats(0, 1.1)) * (high - low)


@settings(max_examples=60, deadline=None)
@given(problems())
def test_never_over_budget_and_never_worse_than_brute_force(problem):
    scores, costs, fixed, budget = problem
    selection = solve(scores, costs, budget, fixed)
    best = max(score for score, _, _ in every_network(scores, costs, budget, fixed))
    spread = max(max(row) - min(row) for row in scores)
    assert selection.cost == latency(selection.options, costs, fixed) <= budget
    assert selection.score == pytest.approx(math.fsum(scores[b][i] for b, i in enumerate(selection.options)), abs=1e-12)
    assert selection.score >= best - 2e-8 * spread - 1e-12
    assert selection.status == "optimal"
    assert solve(scores, costs, budget, fixed) == selection


@settings(max_examples=60, deadline=None)
@given(problems(score=st.sampled_from([-2.0, -1.0, 0.0]), cost=st.sampled_from([0.0, 1.0, 1.5, 3.0])))
def test_equal_scores_go_to_the_cheapest_network(problem):
    scores, costs, fixed, budget = problem
    selection = solve(scores, costs, budget, fixed)
    best, ms = max((score, -ms) for score, ms, _ in every_network(scores, costs, budget, fixed))
    assert (selection.score, selection.cost) == (best, -ms)


@settings(max_examples=25, deadline=None)
@given(problems(), st.randoms())
def test_the_order_of_the_options_does_not_matter(problem, random):
    scores, costs, fixed, budget = problem
    order = list(range(len(costs)))
    random.shuffle(order)
    shuffled = solve([[row[i] for i in order] for row in scores], [costs[i] for i in order], budget, fixed)
    spread = max(max(row) - min(row) for row in scores)
    assert shuffled.score == pytest.approx(solve(scores, costs, budget, fixed).score, abs=4e-8 * spread + 1e-12)


def test_positions_alike_take_options_in_the_order_of_the_design_space():
    scores = [[0.0, 1.0, 2.0]] * 4
    selection = solve(scores, [0.0, 1.0, 2.0], 5.0)
    assert selection.score == 5.0
    assert selection.options == sorted(selection.options)


def test_a_budget_met_exactly_is_not_exceeded_by_rounding():
    costs = [0.1, 0.2, 0.3]
    baseline = [1, 2] * 6
    budget = latency(baseline, costs, 0.7)
    scores = np.zeros((12, 3))
    scores[np.arange(12), baseline] = 1.0
    selection = solve(scores, costs, budget, 0.7)
    assert selection.options == baseline
    assert selection.cost == budget


def test_an_overrun_within_the_solvers_tolerance_is_caught():
    """HiGHS takes the last option for affordable; the budget it is given shrinks until it does not."""
    assert solve([[0.0, 1.0, 2.0]], [0.0, 1.0, 1.0 + 1e-11], 1.0).options == [1]


def test_costs_too_close_to_tell_apart_cost_a_little_score_and_say_so(monkeypatch):
    """After so many answers over the budget by a hundred-millionth of a cost, the rest is taken from the budget."""
    scores = np.random.default_rng(0).normal(size=(6, 5))
    costs = [0.0, *(1 + 1e-8 * k for k in range(4))]
    exact = solve(scores, costs, 3 + 1e-8)
    assert (exact.status, exact.gap) == ("optimal", 0)
    assert exact.score == pytest.approx(max(every_network(scores, costs, 3 + 1e-8, 0.0))[0], abs=1e-6)
    monkeypatch.setattr(select_module, "STRIKES", 1)
    selection = solve(scores, costs, 3 + 1e-8)
    assert selection.status == "node limit"
    assert selection.cost <= 3 + 1e-8
    spread = max(np.ptp(row) for row in scores)
    best = scores.max(axis=1).sum()
    assert exact.score - selection.score <= selection.gap * (best - selection.score) + 1e-8 * spread


def test_the_cheapest_network_is_found_where_the_solver_takes_many_others_for_as_cheap():
    """One that costs 1e-7 more at any of 24 positions scores better, and is over the budget."""
    selection = solve([[0.0, 1.0, 0.0]] * 24, [0.0, 1e-7, 1.0], 0.0)
    assert selection.options == [0] * 24
    assert selection.status == "node limit"


def test_the_smallest_reachable_budget_gives_the_cheapest_network():
    costs = [0.3, 0.1, 0.2]
    low, _ = reachable(costs, 7, 0.1)
    selection = solve(np.random.default_rng(0).normal(size=(7, 3)), costs, low, 0.1)
    assert selection.options == [1] * 7
    assert selection.cost == low


def test_a_budget_below_every_sum_by_rounding_only_is_refused():
    costs = [0.3, 0.1, 0.2]
    low, _ = reachable(costs, 7, 0.1)
    with pytest.raises(UserError):
        solve(np.zeros((7, 3)), costs, np.nextafter(low, 0), 0.1)


@pytest.mark.parametrize("solver", ["milp", "argmax"])
def test_a_target_out_of_reach_names_the_reachable_range(solver):
    with pytest.raises(UserError) as error:
        solve(np.zeros((4, 2)), [0.4575, 2.8275], 1.23, 1.0, solver, baseline=12.3)
    assert str(error.value) == (
        "target 0.1 cannot be met: reachable range is 0.24 to 1.00 of the baseline's 12.3 ms; "
        "choose a target in that range"
    )
    solve(np.zeros((4, 2)), [0.4575, 2.8275], 0.24 * 12.3, 1.0, solver, baseline=12.3)


def test_argmax_ignores_the_budget_and_breaks_ties_by_cost_then_order():
    scores = [[0.0, 1.0, 1.0, 1.0], [3.0, 0.0, 0.0, 0.0]]
    selection = solve(scores, [9.0, 5.0, 2.0, 2.0], 5.0, 1.0, "argmax")
    assert selection.options == [2, 0]
    assert (selection.cost, selection.score) == (12.0, 4.0)
    assert (selection.status, selection.gap) == ("argmax", None)


def test_negative_costs_are_allowed():
    """A block can measure below zero on a noisy device; it is never clamped."""
    selection = solve([[0.0, 1.0, 5.0]] * 2, [-1.0, 0.5, 9.0], 0.0, 0.5)
    assert sorted(selection.options) == [0, 1]


def test_a_search_that_does_not_end_reports_its_gap(monkeypatch):
    """Scores linear in the costs: a subset-sum problem."""
    monkeypatch.setattr(select_module, "NODE_LIMIT", 20)
    costs = np.sort(np.random.default_rng(0).random(8))
    selection = solve(np.tile(costs, (24, 1)), costs, 12.0)
    assert selection.status == "node limit"
    assert 0 < selection.gap < 1e-2
    assert selection.cost <= 12.0


def test_a_realistic_space_is_solved_to_the_bound_of_its_relaxation():
    """24 positions of 8 options: the gap to the linear relaxation is at most one position's spread."""
    generator = np.random.default_rng(1)
    costs = np.array([0.0, 0.3, 0.5, 0.9, 1.7, 1.0, 1.2, 2.1])
    scores = np.log(generator.dirichlet(np.ones(8), size=24))
    selection = solve(scores, costs.tolist(), 14.0, 0.4)
    # Lagrangian bound: for every multiplier m, max score <= sum_b max_i (s_bi - m c_i) + m (budget - fixed).
    bound = min((scores - m * costs).max(axis=1).sum() + m * (14.0 - 0.4) for m in np.linspace(0, 20, 2001))
    assert bound - np.ptp(scores, axis=1).max() <= selection.score <= bound + 1e-9


@pytest.mark.parametrize(
    ("scores", "costs", "solver"),
    [
        (np.zeros((2, 3)), [1.0, 2.0], "milp"),
        (np.zeros(3), [1.0, 2.0, 3.0], "milp"),
        (np.array([[np.nan, 0.0]]), [1.0, 2.0], "milp"),
        (np.zeros((2, 2)), [1.0, np.inf], "milp"),
        (np.zeros((2, 2)), [1.0, 2.0], "best"),
    ],
)
def test_misuse_is_refused(scores, costs, solver):
    with pytest.raises(ValueError):
        solve(scores, costs, 10.0, solver=solver)


def distance(a, b):
    return sum(x != y for x, y in zip(a, b, strict=True))


@st.composite
def confined_problems(draw):
    """A problem, a second currency and its budget, a network to stay near to and another to keep away from."""
    scores, costs, fixed, budget = problem = draw(problems())
    positions, options = np.shape(scores)
    network = st.lists(st.integers(0, options - 1), min_size=positions, max_size=positions)
    distance = st.integers(0, positions)
    size = draw(st.lists(ANY_COST, min_size=options, max_size=options))
    most = latency(draw(network), size, 0.5)
    return problem, (size, most), (draw(network), draw(distance)), (draw(network), draw(distance))


FAR = ([0, 0, 0, 0], 0)
"""Every network is as far away as this."""


@settings(max_examples=60, deadline=None)
@given(confined_problems())
# Costs a millionth of their spread apart, budgets met exactly: the solver's tolerance hides one behind the other.
@example(
    (
        ([[0.0, -1.0, 0.0]] * 3 + [[-1.0, -2.0, 0.0]], [1e-06, 0.0, 2.0], 0.0, 2.000002),
        ([0.0, 1.0, 1e-06], 2.5),
        ([2, 2, 2, 2], 3),
        FAR,
    )
)
@example(
    (
        ([[0.0, -1.0, 0.0]] * 3 + [[-1.0, -1.0, 0.0]], [1e-06, 0.0, 1.0], 0.0, 1.000002),
        ([0.0, 1.0, 0.0], 1.5),
        ([1, 2, 1, 2], 3),
        FAR,
    )
)
def test_several_limits_and_distances_against_brute_force(confined):
    """Infeasible exactly where it is."""
    (scores, costs, fixed, budget), (size, most), near, (apart, away) = confined
    limit = Limit("params", size, 0.5, most, 2.0, "parameters")
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
    spread = max(max(row) - min(row) for row in scores)
    assert selection.score >= max(allowed)[0] - 2e-8 * spread - 1e-12


@settings(max_examples=40, deadline=None)
@given(problems(), st.floats(0, 1))
@example(([[0.0, 0.0]], [0.0, 1.0], 0.0, 1e-148), 1.0)  # the cheapest network misses it by less than HiGHS can tell
@example(([[-1.0, 0.0], [0.0, 0.0], [-1.0, 0.0]], [1.0, 0.0], 0.0, 3.0), 1e-7)
def test_a_floor_against_brute_force(problem, share):
    scores, costs, fixed, budget = problem
    low, _ = reachable(costs, len(scores), fixed)
    floor = low + share * (budget - low)
    limit = Limit("target", costs, fixed, budget, 1.0, floor=floor)
    allowed = [score for score, ms, _ in every_network(scores, costs, budget, fixed) if ms >= floor]
    if not allowed:
        with pytest.raises(UserError):
            select(np.array(scores), names(costs), [limit])
        return
    selection = select(np.array(scores), names(costs), [limit])
    assert floor <= selection.cost <= budget
    spread = max(max(row) - min(row) for row in scores)
    assert selection.score >= max(allowed) - 2e-8 * spread - 1e-12


def test_limits_that_exclude_each_other_name_the_range_of_each():
    more = [Limit("params", [5.0, 1.0], 0.0, 5.0, 10.0, "parameters")]
    with pytest.raises(UserError) as error:
        solve(np.zeros((4, 2)), [1.0, 5.0], 5.0, 1.0, baseline=10.0, more=more)
    assert str(error.value) == (
        "no network keeps all limits at once: target 0.5 (alone 0.50 to 2.10), params 0.5 (alone 0.40 to 2.00); "
        "loosen one of them"
    )


def test_diverse_alternatives_are_each_the_best_that_is_left():
    """Four solutions, any two of them different at two positions or more, in falling order of score."""
    scores = np.random.default_rng(3).normal(size=(5, 4))
    costs = [0.0, 1.0, 2.0, 3.0]
    found = []
    for _ in range(4):
        found.append(solve(scores, costs, 7.0, apart=([s.options for s in found], 2)))
        best = max(
            score
            for score, _, chosen in every_network(scores, costs, 7.0, 0.0)
            if all(distance(chosen, earlier.options) >= 2 for earlier in found[:-1])
        )
        assert found[-1].score == pytest.approx(best)
    assert [s.score for s in found] == sorted((s.score for s in found), reverse=True)
