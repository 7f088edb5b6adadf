"""Confidence intervals of a metric's difference between two networks on the same samples: the paired bootstrap.

Samples are drawn with replacement, the same ones for both networks, and the metric is computed anew for each draw.
This serves metrics that are no means of samples too, such as F1 (Efron and Tibshirani, An Introduction to the
Bootstrap, 1993, chapter 13).  The interval covers the choice of the test samples, not another training.
"""

from __future__ import annotations

import numpy as np

from planer.paired import CONFIDENCE
from planer.tasks.metrics import METRICS, Scores

RESAMPLES = 1_000
"""Draws: the ends of a 95 % interval rest on the 25 smallest and largest."""


def difference(metric: str, scores: Scores, reference: Scores, seed: int) -> dict[str, float]:
    """A metric less that of the reference, and the ends of its interval: value, low, high.

    The same seed draws the same samples for every network.  Raises ValueError when the numbers of samples differ.
    """
    if len(scores.nll) != len(reference.nll):
        raise ValueError(f"{len(scores.nll)} and {len(reference.nll)} samples are no pairs")
    compute, random, samples = METRICS[metric].compute, np.random.default_rng(seed), len(scores.nll)
    draws = (random.integers(0, samples, samples) for _ in range(RESAMPLES))
    counted = (drawn for drawn in draws if scores.counts[drawn].any())  # blocks without hidden tokens have no metric
    resampled = [compute(scores.take(drawn)) - compute(reference.take(drawn)) for drawn in counted]
    low, high = np.quantile(resampled, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return {"value": compute(scores) - compute(reference), "low": float(low), "high": float(high)}
