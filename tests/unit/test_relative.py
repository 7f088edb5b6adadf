"""Latencies relative to the baseline's, with both measured alternately."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from toy import VOCAB_SIZE, experiment

from planer import measure as measure_module
from planer.latency import relative
from planer.latency.relative import TOLERANCE, is_precise, relative_latency, too_slow
from planer.runtime import Runtime

CPU = torch.device("cpu")


def test_a_network_may_be_slower_than_its_target_by_the_tolerance():
    assert [too_slow(ratio, 0.5) for ratio in (0.3, 0.5, 0.5 * (1 + TOLERANCE), 0.511)] == [False, False, False, True]


def test_the_latency_of_a_network_is_relative_to_the_baselines(monkeypatch):
    """FLOPs take the place of times, which vary on a busy machine."""

    def flops(call, device):
        with FlopCounterMode(display=False) as counter:
            call()
        return float(counter.get_total_flops())

    monkeypatch.setattr(measure_module, "_cpu_ms", flops)
    config = experiment(candidates={"measure_rounds": 3})
    baseline = config.model.architecture(VOCAB_SIZE, config.patterns.baseline)
    measured = relative_latency(config, VOCAB_SIZE, Runtime())
    large, empty = (dataclasses.replace(baseline, blocks=baseline.blocks * times) for times in (4, 0))
    assert measured(large) > measured(baseline) == 1 > measured(empty) > 0


def test_a_median_is_precise_if_its_interval_is_within_the_tolerance():
    assert is_precise([0.5 + 0.001 * k for k in range(-10, 11)])
    assert not is_precise([0.5 + 0.01 * k for k in range(-10, 11)])
    assert is_precise([0.5 + 0.01 * k for k in range(-10, 11)] * 100)  # as noisy, but many
    assert not is_precise([0.5] * 5)


@pytest.mark.parametrize(("noise", "sets"), [(0.0, 1), (0.1, 3)])
def test_a_noisy_device_is_measured_for_longer_and_slow_rounds_cancel(monkeypatch, noise, sets):
    """Rounds differ in speed up to ten times; the network's time also varies by ``noise``."""
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
