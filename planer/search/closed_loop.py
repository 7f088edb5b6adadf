"""Measuring a chosen network before it is trained, and choosing again when it misses its target.

Sums of block latencies are off by a few percent on a real device.  The bias of the network just measured corrects the
budget of the next choice:

    budget_1 = target,    budget_{k+1} = min(target, target * estimated_k / measured_k)    (over the baseline's latency)

By the table, too, a network never exceeds its target, so one that is measured faster is kept, unless its budget had
been lowered by too much.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from types import SimpleNamespace

import torch
from scipy.stats import quantile_test

from planer.architecture import Architecture
from planer.config import derive_seed
from planer.files import UserError
from planer.latency.networks import random_model, timed_forward
from planer.measure import by_round, measure_placed
from planer.search.constraints import Limit
from planer.search.solve import Selection

TOLERANCE = 0.02
"""A network may miss its target by this share before it is replaced."""
SHORTFALL = 0.04
"""A network that has to win trials besides may be so much faster than its target: what it gains in time it has to make
up for in quality."""
WARMUP = 3
"""Untimed rounds of a measurement."""
PLACEMENTS = 3
"""Sets of weights, in other places of memory, over which a measurement is spread."""
SETS = 3
"""On a noisy machine a measurement is made up to so many times, until it tells TOLERANCE."""
MAX_SECONDS = 12.0
"""One of these stops after this long, at a whole round."""
CONFIDENCE = 0.95
"""Of the interval that says what a measurement tells."""

Measurement = Callable[[Architecture], float]
"""From a network to its measured latency over the baseline's."""


def on_target(ratio: float, target: float) -> bool:
    """Whether a measured latency is as close to its target as the loop wants it; both over the baseline's."""
    return (1 - TOLERANCE) * target <= ratio and not too_slow(ratio, target)


def worth_a_trial(ratio: float, target: float) -> bool:
    """Whether a network measured at this latency may compete for its target; both over the baseline's."""
    return (1 - SHORTFALL) * target <= ratio and not too_slow(ratio, target)


def too_slow(ratio: float, target: float) -> bool:
    """Whether a measured latency is beyond its target by more than measurements may err."""
    return ratio > (1 + TOLERANCE) * target


def against(
    config: SimpleNamespace, vocab_size: int, seed: int, device: torch.device, dtype: torch.dtype
) -> Measurement:
    """Measurements in turn with the baseline, for the workload, with random weights: medians of ratios within rounds.

    A machine that others use slows both networks down at a time: ratios within a round are steadier than the ratio of
    medians over rounds.  Rounds are added until the interval of the median is as narrow as the tolerance, SETS times as
    many at most.

    config: the sections model, patterns, workload and sample_architecture.
    """
    baseline = config.model.architecture(vocab_size, config.patterns.baseline)
    how = (config.workload, device, dtype, config.workload.attention)

    def relative_latency(network: Architecture) -> float:
        def calls(number: int) -> dict[str, Callable[[], torch.Tensor]]:
            weights = derive_seed(seed, "closed loop", "weights", number)
            networks = {"network": network, "baseline": baseline}
            return {name: timed_forward(random_model(n, device, dtype, weights), *how) for name, n in networks.items()}

        rounds, ratios = config.sample_architecture.measure_rounds, []
        for number in range(SETS):
            order, what = derive_seed(seed, "closed loop", number), "measuring the choice"
            samples = by_round(measure_placed(calls, PLACEMENTS, rounds, WARMUP, order, MAX_SECONDS, device, what))
            ratios = [*ratios, *(samples["network"] / samples["baseline"])]
            if known(ratios):
                break
        return statistics.median(ratios)

    return relative_latency


def known(ratios: Sequence[float]) -> bool:
    """Whether the median of these is known to the tolerance: by the ranks of its interval, whatever the distribution.

    False for fewer than six, whose extremes the median may lie beyond.
    """
    interval = quantile_test(ratios, q=statistics.median(ratios), p=0.5).confidence_interval(CONFIDENCE)
    return bool(interval.high - interval.low <= 2 * TOLERANCE * statistics.median(ratios))


def correct(
    first: Selection,
    choose: Callable[[Selection, Limit], Selection],
    limit: Limit,
    measured: Callable[[Selection], float],
    corrections: int,
) -> tuple[Selection, list[dict]]:
    """Measure the first choice and, up to ``corrections`` times, choose and measure anew.

    choose makes another choice, given the last one, under another latency limit.  Returns the slowest choice that was
    measured within the target, or the fastest where none was, and one note per round.
    """
    target, within, choice, rounds = limit.share, limit, first, []
    tried: list[tuple[float, Selection]] = []
    while True:
        ratio = measured(choice)
        rounds.append(round_of(choice, within, ratio))
        tried.append((ratio, choice))
        corrected = min(target, target * rounds[-1]["estimated"] / ratio)
        if on_target(ratio, target) or corrected == within.share or len(rounds) > corrections:
            break
        within = limit.at(corrected)
        try:
            choice = choose(choice, within)
        except UserError:  # the corrected budget is out of reach: what was measured is the best there is
            break
        if any(choice.options == other.options for _, other in tried):
            break
    fast_enough = [entry for entry in tried if not too_slow(entry[0], target)]
    _, choice = max(fast_enough, key=_ratio) if fast_enough else min(tried, key=_ratio)
    return choice, rounds


def centred(limit: Limit, measured: Iterable[tuple[float, float]]) -> Limit:
    """The latency limit whose networks meet the target when they are as far off as others were in the median.

    measured: latencies by the table and measured, over the baseline's, of at least one network.
    """
    bias = statistics.median(ratio / estimated for estimated, ratio in measured)
    return dataclasses.replace(limit, budget=math.floor(min(1.0, 1 / bias) * limit.budget))


def round_of(choice: Selection, limit: Limit, measured: float) -> dict:
    """The note on one measurement: options, and over the baseline's latency the budget, estimated and measured."""
    estimated = choice.cost / limit.baseline
    return {"budget": limit.share, "estimated": estimated, "measured": measured, "options": list(choice.options)}


def _ratio(entry: tuple[float, Selection]) -> float:
    return entry[0]
