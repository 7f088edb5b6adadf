"""The closed loop: what is measured too slow is chosen again with a budget that its bias corrects."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from toy import VOCAB_SIZE, experiment

from planer.files import UserError
from planer.search import closed_loop
from planer.search.closed_loop import against, centred, correct, known, worth_a_trial
from planer.search.constraints import PICOSECONDS, Limit, latency_limit
from planer.search.solve import Selection

LIMIT = latency_limit("target", 0.5, [1.0], 0.0, [100.0])


def selection(ms: float) -> Selection:
    return Selection([int(ms)], int(ms) * PICOSECONDS, 0.0, "optimal", 0.0)


def run(bias: float, corrections: int = 3, first: float = 50.0, smallest: float = 0.0):
    """A device that is slower by ``bias`` than the table says, and networks of every latency in whole ms."""

    def choose(last: Selection, limit: Limit) -> Selection:
        if limit.budget < smallest * PICOSECONDS:
            raise UserError("nothing is that fast")
        return selection(limit.budget // PICOSECONDS)

    return correct(selection(first), choose, LIMIT, lambda choice: bias * choice.cost / LIMIT.baseline, corrections)


@pytest.mark.parametrize("bias", [0.5, 0.97, 1.0, 1.02])
def test_what_meets_its_target_is_kept(bias):
    choice, rounds = run(bias)
    assert choice.options == [50] and len(rounds) == 1
    assert rounds[0] == {"budget": 0.5, "estimated": 0.5, "measured": pytest.approx(bias / 2), "options": [50]}


def test_competitors_may_be_faster_by_more_than_the_loop_wants():
    ratios = [0.479, 0.481, 0.5, 0.509, 0.511]
    assert [worth_a_trial(ratio, 0.5) for ratio in ratios] == [False, True, True, True, False]


def test_a_slow_network_is_replaced_by_one_that_meets_the_target_when_measured():
    choice, rounds = run(bias=1.1)
    assert choice.options == [45]  # 50 / 1.1, rounded down
    assert [entry["estimated"] for entry in rounds] == [0.5, 0.45]
    assert rounds[1]["budget"] == pytest.approx(0.5 / 1.1) and rounds[1]["measured"] <= 0.5


@pytest.mark.parametrize(
    "biases, budget", [([1.25], 40.0), ([1.0, 1.25, 3.0], 40.0), ([1.0, 1.5], 40.0), ([0.8, 0.9], 50.0)]
)
def test_the_limit_for_others_follows_the_median_bias_but_not_above_the_target(biases, budget):
    limit = centred(LIMIT, [(0.4, 0.4 * bias) for bias in biases])
    assert limit.budget / PICOSECONDS == pytest.approx(budget)
    assert limit == dataclasses.replace(LIMIT, budget=limit.budget)


def test_corrections_are_counted_and_the_fastest_is_kept():
    measurements = iter([0.7, 0.6, 0.65])
    cheaper = iter([40.0, 30.0])
    choice, rounds = correct(
        selection(50.0), lambda last, limit: selection(next(cheaper)), LIMIT, lambda choice: next(measurements), 2
    )
    assert len(rounds) == 3 and choice.options == [40]
    assert [entry["budget"] for entry in rounds] == sorted((entry["budget"] for entry in rounds), reverse=True)


def test_a_budget_that_was_lowered_by_too_much_rises_again():
    """The first measurement was disturbed: the table is right, the network 20 % slower than it says."""
    measurements = iter([0.6, 0.42, 0.5])
    choice, rounds = correct(
        selection(50.0),
        lambda last, limit: selection(limit.budget // PICOSECONDS),
        LIMIT,
        lambda choice: next(measurements),
        3,
    )
    assert [entry["estimated"] for entry in rounds] == [0.5, 0.41, 0.48]
    assert choice.options == [48]


def test_of_networks_within_the_target_the_slowest_is_kept():
    measurements = iter([0.6, 0.45, 0.53, 0.4])
    choice, rounds = correct(
        selection(50.0),
        lambda last, limit: selection(limit.budget // PICOSECONDS),
        LIMIT,
        lambda choice: next(measurements),
        3,
    )
    assert len(rounds) == 4 and choice.options == [41]


def test_a_choice_that_comes_back_ends_the_loop():
    choice, rounds = correct(selection(50.0), lambda last, limit: last, LIMIT, lambda choice: 0.6, 3)
    assert choice.options == [50] and len(rounds) == 1


def test_out_of_reach_ends_with_what_was_measured():
    choice, rounds = run(bias=1.3, smallest=40.0)
    assert choice.options == [50] and len(rounds) == 1


def test_a_real_measurement_tells_a_large_network_from_a_small_one():
    config = experiment(sample_architecture={"measure_rounds": 3})
    baseline = config.model.architecture(VOCAB_SIZE, config.patterns.baseline)
    measured = against(config, VOCAB_SIZE, 0, torch.device("cpu"), torch.float32)
    twice = dataclasses.replace(baseline, blocks=baseline.blocks * 4)
    assert measured(twice) > measured(dataclasses.replace(baseline, blocks=())) > 0


def test_a_median_is_known_when_its_interval_is_as_narrow_as_the_tolerance():
    assert known([0.5 + 0.001 * k for k in range(-10, 11)])
    assert not known([0.5 + 0.01 * k for k in range(-10, 11)])
    assert known([0.5 + 0.01 * k for k in range(-10, 11)] * 100)  # as noisy, but many
    assert not known([0.5] * 5)


@pytest.mark.parametrize(("noise", "sets"), [(0.0, 1), (0.1, 3)])
def test_a_noisy_device_is_measured_for_longer_and_what_slows_both_networks_down_cancels(monkeypatch, noise, sets):
    """Rounds are up to ten times as slow as others; beyond that, the network's own time varies by ``noise``."""
    generator, lengths = np.random.default_rng(0), []

    def measured(calls, placements, rounds, *others):
        lengths.append(rounds)
        slow = generator.uniform(1, 10, rounds)
        ms = {"network": 4.9 * slow * generator.normal(1, noise, rounds), "baseline": 10 * slow}
        return pd.DataFrame(ms).rename_axis("round").reset_index().melt("round", var_name="name", value_name="ms")

    monkeypatch.setattr(closed_loop, "measure_placed", measured)
    config = experiment(sample_architecture={"measure_rounds": 12})
    network = config.model.architecture(VOCAB_SIZE, config.patterns.baseline)
    ratio = against(config, VOCAB_SIZE, 0, torch.device("cpu"), torch.float32)(network)
    assert ratio == pytest.approx(0.49, abs=1e-12 + 0.2 * noise)
    assert lengths == [12] * sets
