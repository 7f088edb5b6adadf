"""Successive halving with made-up losses."""

from __future__ import annotations

import numpy as np
import pytest
from planted import losses

from planer.search.halving import Losses, halve

pytestmark = pytest.mark.slow


def run(final, rungs=(0.2, 0.4), latency=None, noise=0.0):
    """Halve networks with these final losses; the result, and what was trained."""
    trained = []

    def train(number: int, share: float) -> Losses:
        trained.append((number, share))
        return losses(final[number] + 1 - share, f"{number}", noise)

    return halve(len(final), rungs, train, latency or [0.5] * len(final)), trained


@pytest.mark.parametrize("seed", range(5))
def test_the_lowest_loss_wins(seed):
    final = np.random.default_rng(seed).permutation(np.linspace(2, 3, 9)).tolist()
    found, _ = run(final, rungs=(0.1, 0.2, 0.4))
    assert found.winner == final.index(2.0) and found.share == 0.4


@pytest.mark.parametrize(("count", "second", "third"), [(2, 1, 1), (3, 2, 1), (7, 4, 2), (8, 4, 2)])
def test_the_better_half_reaches_the_next_rung(count, second, third):
    """Half is rounded up; a single network stops."""
    final = [2 + 0.1 * number for number in range(count)]
    found, trained = run(final, rungs=(0.1, 0.2, 0.4))
    assert [number for number, share in trained if share == 0.1] == list(range(count))
    assert [number for number, share in trained if share == 0.2] == list(range(second))
    assert [number for number, share in trained if share == 0.4] == ([] if second == 1 else list(range(third)))
    last = {number: share for number, share in trained}
    assert [rung["proxy_share"] for rung in found.rungs] == [last[number] for number in range(count)]
    assert found.rungs[0]["proxy_nll"] == pytest.approx(final[0] + 1 - last[0])
    assert found.winner == 0 and found.share == last[0]


def test_a_network_that_improves_wins_if_it_reaches_the_last_rung():
    def train(number: int, share: float) -> Losses:
        return losses({0.2: [2.5, 2.6, 2.9, 3.0], 0.4: [2.4, 2.1, 2.0, 2.0]}[share][number])

    found = halve(4, [0.2, 0.4], train, [0.5] * 4)
    assert found.winner == 1
    assert [round(rung["proxy_nll"], 6) for rung in found.rungs] == [2.4, 2.1, 2.9, 3.0]


def test_ties_within_the_noise_go_to_the_faster_network():
    final = [2.0, 2.001, 2.002, 2.5]
    assert run(final, latency=[0.5, 0.4, 0.3, 0.2], rungs=(0.2,), noise=0.05)[0].winner == 2
    assert run(final, latency=[0.5, 0.4, 0.3, 0.2], rungs=(0.2,), noise=1e-5)[0].winner == 0, "told apart"
    assert run(final, latency=[0.3, 0.3, 0.3, 0.3], rungs=(0.2,), noise=0.05)[0].winner in (0, 1, 2)


def test_a_tie_is_one_standard_error():
    """Mean differences 0.001 and 0.0005 with standard errors 0.00067 and 0.0032; neither is significant."""
    best = Losses([2.0] * 10, [1] * 10)
    for differences, winner in (([0.003, -0.001] * 5, 0), ([0.01, -0.009] * 5, 1)):
        other = Losses([2.0 + difference for difference in differences], [1] * 10)
        assert halve(2, [0.2], lambda n, share, pair=(best, other): pair[n], [0.5, 0.4]).winner == winner


def test_segments_of_different_difficulty_make_no_tie():
    """Segments differ a hundred times as much as the networks, equally for both."""
    found, _ = run([2.0, 2.003], latency=[0.5, 0.4], noise=1e-4)
    assert found.winner == 0


def test_a_tie_with_the_same_latency_goes_to_the_lower_loss():
    found, _ = run([2.001, 2.0], latency=[0.5, 0.5], rungs=(0.2,), noise=0.05)
    assert found.winner == 1


def test_a_single_candidate_is_trained_on_the_first_rung_only():
    found, trained = run([2.0], rungs=(0.1, 0.2, 0.4))
    assert trained == [(0, 0.1)] and (found.winner, found.share) == (0, 0.1)


def test_the_mean_is_weighted_by_tokens():
    assert Losses([1.0, 2.0], [300, 100]).mean == pytest.approx(1.25)
    paired = Losses([1.0, 2.0, 3.0], [1, 1, 1]).against(Losses([1.1, 2.1, 3.1], [1, 1, 1]))
    assert paired.difference == pytest.approx(-0.1) and paired.word == "better"
