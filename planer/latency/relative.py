"""How long a network takes over the baseline, measured with both in turn.

Sums of block latencies are off by a few percent on a real device, so a network is measured before it is trained.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import torch
from scipy.stats import quantile_test

from planer.config import derive_seed
from planer.latency.networks import random_model, timed_forward
from planer.measure import by_round, measure_placed
from planer.specs import Architecture

TOLERANCE = 0.02
"""A measured latency may be above its target by this share."""
WARMUP = 3
"""Untimed rounds of a measurement."""
PLACEMENTS = 3
"""Sets of weights, in other places of memory, over which a measurement is spread."""
SETS = 3
"""On a noisy machine a measurement is made up to this often, until it is precise."""
MAX_SECONDS = 12.0
"""One of these stops after this long, at a whole round."""
CONFIDENCE = 0.95
"""Of the interval of the median."""

Measurement = Callable[[Architecture], float]
"""From a network to its measured latency over the baseline's."""


def too_slow(ratio: float, target: float) -> bool:
    """Whether a measured latency is above its target by more than TOLERANCE; both over the baseline's."""
    return ratio > (1 + TOLERANCE) * target


def relative_latency(
    config: SimpleNamespace, vocab_size: int, seed: int, device: torch.device, dtype: torch.dtype
) -> Measurement:
    """Measurements for the workload, with random weights: medians of ratios within rounds.

    A machine that others use slows both networks down at a time: ratios within a round are steadier than the ratio of
    medians over rounds.  Rounds are added until the interval of the median is as narrow as TOLERANCE, SETS times as
    many at most.

    config: the sections model, patterns, workload and candidates.
    """
    baseline = config.model.architecture(vocab_size, config.patterns.baseline)
    runtime = (config.workload, device, dtype, config.workload.attention)

    def measured(network: Architecture) -> float:
        def calls(number: int) -> dict[str, Callable[[], torch.Tensor]]:
            weights = derive_seed(seed, "relative latency", "weights", number)
            networks = {"network": network, "baseline": baseline}
            return {
                name: timed_forward(random_model(n, device, dtype, weights), *runtime) for name, n in networks.items()
            }

        rounds, ratios = config.candidates.measure_rounds, []
        for number in range(SETS):
            order, label = derive_seed(seed, "relative latency", number), f"latency of {network.pattern}"
            samples = by_round(measure_placed(calls, PLACEMENTS, rounds, WARMUP, order, MAX_SECONDS, device, label))
            ratios = [*ratios, *(samples["network"] / samples["baseline"])]
            if is_precise(ratios):
                break
        return statistics.median(ratios)

    return measured


def is_precise(ratios: Sequence[float]) -> bool:
    """Whether the interval of the median is as narrow as TOLERANCE; by ranks, whatever the distribution.

    False for fewer than six, whose extremes the median may lie beyond.
    """
    interval = quantile_test(ratios, q=statistics.median(ratios), p=0.5).confidence_interval(CONFIDENCE)
    return bool(interval.high - interval.low <= 2 * TOLERANCE * statistics.median(ratios))
