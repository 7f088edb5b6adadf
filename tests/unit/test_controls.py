"""Random controls are uniform over the networks in their window; LTS takes the most parameters."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from scipy.stats import chisquare

from planer.files import UserError
from planer.search.constraints import PICOSECONDS, latency_limit
from planer.search.controls import WINDOW, random_network, size_scores
from planer.search.solve import solve


def limit(costs, budget, fixed=0.5):
    return latency_limit("target", 0.5, costs, fixed, [2 * budget - fixed])


@pytest.mark.parametrize("costs, budget", [([0.0, 1.0, 1.02, 2.5, 0.4], 5.0), ([0.3, 0.31, 0.9, 0.61], 3.0)])
def test_every_network_in_the_window_is_drawn_equally_often(costs, budget):
    wanted = limit(costs, budget)
    window = [
        path
        for path in itertools.product(range(len(costs)), repeat=5)
        if (1 - WINDOW) * wanted.budget <= wanted.of(path) <= wanted.budget
    ]
    assert len(window) > 20
    draws = Counter(tuple(random_network(wanted, 5, seed)) for seed in range(20 * len(window)))
    assert set(draws) <= set(window)
    assert chisquare([draws[path] for path in window]).pvalue > 1e-3


def test_large_spaces_and_rare_latencies():
    """32 positions, a latency five standard deviations below the mean."""
    costs = np.array([0.0, 0.031, 0.057, 0.089, 0.168, 0.072, 0.156, 0.247])
    rare = limit(costs.tolist(), 1.2, fixed=0.04)
    first = random_network(rare, 32, 1)
    assert 0.98 * 1.2 * PICOSECONDS <= rare.of(first) <= 1.2 * PICOSECONDS
    assert random_network(rare, 32, 1) == first != random_network(rare, 32, 2)


def test_a_window_without_networks_is_one_line():
    with pytest.raises(UserError, match="target 0.5: found no network of 3 blocks") as error:
        random_network(limit([1.0, 2.0], 4.3), 3, 0)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="cannot be met: reachable range"):
        random_network(limit([1.0, 2.0], 3.0), 3, 0)


def test_most_parameters_within_the_latency():
    params, costs = [0, 100, 450, 800], [0.0, 1.0, 2.0, 5.0]
    chosen = solve(size_scores(params, 4), ["a", "b", "c", "d"], [limit(costs, 8.6)]).options
    best = max(
        sum(params[i] for i in path)
        for path in itertools.product(range(4), repeat=4)
        if limit(costs, 8.6).of(path) <= 8.6 * PICOSECONDS
    )
    assert sum(params[i] for i in chosen) == best
