"""Latencies over the baseline's, measured with both in turn: what slows both down cancels."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from toy import VOCAB_SIZE, experiment

from planer.latency import relative
from planer.latency.relative import TOLERANCE, is_precise, relative_latency, too_slow
from planer.runtime import Runtime

CPU = torch.device("cpu")


def test_a_network_may_be_slower_than_its_target_by_the_tolerance():
    assert [too_slow(ratio, 0.5) for ratio in (0.3, 0.5, 0.5 * (1 + TOLERANCE), 0.511)] == [False, False, False, True]


def test_a_real_measurement_tells_a_large_network_from_a_small_one():
    config = experiment(candidates={"measure_rounds": 3})
    baseline = config.model.architecture(VOCAB_SIZE, config.patterns.baseline)
    measured = relative_latency(config, VOCAB_SIZE, Runtime())
    twice = dataclasses.replace(baseline, blocks=baseline.blocks * 4)
    assert measured(twice) > measured(dataclasses.replace(baseline, blocks=())) > 0


def test_a_median_is_precise_when_its_interval_is_as_narrow_as_the_tolerance():
    assert is_precise([0.5 + 0.001 * k for k in range(-10, 11)])
    assert not is_precise([0.5 + 0.01 * k for k in range(-10, 11)])
    assert is_precise([0.5 + 0.01 * k for k in range(-10, 11)] * 100)  # as noisy, but many
    assert not is_precise([0.5] * 5)


@pytest.mark.parametrize(("noise", "sets"), [(0.0, 1), (0.1, 3)])
def test_a_noisy_device_is_measured_for_longer_and_what_slows_both_networks_down_cancels(monkeypatch, noise, sets):
    """Rounds are up to ten times as slow as others; beyond that, the network's own time varies by ``noise``."""
    generator, lengths = np.random.default_rng(0), []

    def measured(calls, rounds, *others):
        lengths.append(rounds)
        slow = generator.uniform(1, 10, rounds)
        ms = {"network": 4.9 * slow * generator.normal(1, noise, rounds), "baseline": 10 * slow}
        return pd.DataFrame(ms).rename_axis("round").reset_index().melt("round", var_name="name", value_name="ms")

    monkeypatch.setattr(relative, "measure_placed", measured)
    config = experiment(candidates={"measure_rounds": 12})
    network = config.model.architecture(VOCAB_SIZE, config.patterns.baseline)
    ratio = relative_latency(config, VOCAB_SIZE, Runtime())(network)
    assert ratio == pytest.approx(0.49, abs=1e-12 + 0.2 * noise)
    assert lengths == [12] * sets
