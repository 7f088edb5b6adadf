"""A network's latency over the baseline's, both measured alternately.

Sums of block latencies have errors of a few percent on a real device, so a network is measured before it is trained.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from types import SimpleNamespace

from scipy.stats import quantile_test

from planer.latency.networks import random_model, timed_forward
from planer.measure import by_round, measure_placed
from planer.runtime import Runtime
from planer.specs import Architecture

TOLERANCE = 0.02
"""A measured latency may be above its target by this share."""
WARMUP = 1
"""Untimed rounds at every place in memory."""
SETS = 3
"""Most measurements of a network; more than one on a noisy machine, until the median is precise."""
MAX_SECONDS = 12.0
"""Time limit of each, checked after every round."""
CONFIDENCE = 0.95
"""Of the interval of the median."""

Measurement = Callable[[Architecture], float]
"""From a network to its measured latency over the baseline's."""


def too_slow(ratio: float, target: float) -> bool:
    """Whether a measured latency is above its target by more than TOLERANCE; both over the baseline's."""
    return ratio > (1 + TOLERANCE) * target


def relative_latency(config: SimpleNamespace, vocab_size: int, runtime: Runtime) -> Measurement:
    """Measurements for the workload, with random weights: medians of ratios within rounds.

    Other work on the machine slows both networks down: ratios within a round vary less than the ratio of medians over
    rounds.  Rounds are added until the interval of the median is as narrow as TOLERANCE, up to SETS times as many.

    config: the sections model, patterns, workload and candidates.
    """
    baseline, work = config.model.architecture(vocab_size, config.patterns.baseline), config.workload.target

    def measured(network: Architecture) -> float:
        def calls(number: int) -> dict[str, Callable[[], object]]:
            placed = runtime.derived("relative latency", "weights", number)
            networks = {"network": network, "baseline": baseline}
            return {
                name: timed_forward(random_model(n, placed), work, placed, work.attention)
                for name, n in networks.items()
            }

        rounds, ratios = config.candidates.measure_rounds, []
        for number in range(SETS):
            order, label = runtime.derive("relative latency", number), f"latency of {network.pattern}"
            how = (rounds, WARMUP, order, MAX_SECONDS, runtime.device)
            samples = by_round(measure_placed(calls, *how, label))
            ratios = [*ratios, *(samples["network"] / samples["baseline"])]
            if is_precise(ratios):
                break
        return statistics.median(ratios)

    return measured


def is_precise(ratios: Sequence[float]) -> bool:
    """Whether the interval of the median, by ranks, is as narrow as TOLERANCE.

    False for fewer than six ratios: the median may lie beyond their extremes.
    """
    interval = quantile_test(ratios, q=statistics.median(ratios), p=0.5).confidence_interval(CONFIDENCE)
    return bool(interval.high - interval.low <= 2 * TOLERANCE * statistics.median(ratios))
