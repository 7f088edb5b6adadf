"""The mean difference of two networks' losses on the same segments of text, and its confidence interval.

Segments differ far more from one another than two networks differ on one segment.  The difference is therefore taken
segment by segment.  With losses a_i and b_i and weights w_i that sum to 1, over n segments:

    d_i = a_i - b_i,   D = sum w_i d_i,   SE^2 = sum w_i (d_i - D)^2 / (n - 1),   interval: D +- t(n - 1) SE

A segment's weight is its number of tokens: the variance of a mean over tokens falls with their number.  The interval
covers the choice of the text.  It does not cover another training of the same network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

CONFIDENCE = 0.95
"""Probability that an interval contains the true difference."""


@dataclass(frozen=True)
class Paired:
    """A paired comparison of losses, lower is better."""

    difference: float
    """Mean loss less that of the reference; below 0 where it is better."""
    standard_error: float
    """Of the difference; infinite for a single pair."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""
    reference: float
    """Mean loss of the reference."""

    @property
    def share(self) -> float:
        """The difference over the reference's mean."""
        return self.difference / self.reference

    @property
    def share_interval(self) -> tuple[float, float]:
        """Both ends of the interval over the reference's mean; the error of that mean is neglected."""
        return self.low / self.reference, self.high / self.reference

    @property
    def within_error(self) -> bool:
        """Whether the difference is at most one standard error."""
        return abs(self.difference) <= self.standard_error

    @property
    def word(self) -> str:
        """``better`` or ``worse`` where the interval lies on one side of 0, else ``not told apart``."""
        if self.high < 0:
            return "better"
        return "worse" if self.low > 0 else "not told apart"


def compare_pairs(
    losses: Sequence[float], reference: Sequence[float], weights: Sequence[float] | None = None
) -> Paired:
    """Compare two lists of losses, [n] each, pair by pair.

    weights: [n], above 0, such as tokens per segment; equal without.  One pair has an infinite interval.
    Raises ValueError when the lists differ in length or are empty.
    """
    own, other = np.asarray(losses, np.float64), np.asarray(reference, np.float64)
    share = np.ones(len(own)) if weights is None else np.asarray(weights, np.float64)
    if not own.shape == other.shape == share.shape or own.ndim != 1 or not len(own):
        raise ValueError(f"losses {own.shape}, reference {other.shape} and weights {share.shape} are no pairs")
    share = share / share.sum()
    differences, freedom = own - other, len(own) - 1
    mean = float(share @ differences)
    error = math.sqrt(share @ (differences - mean) ** 2 / freedom) if freedom else math.inf
    reach = float(student.ppf((1 + CONFIDENCE) / 2, freedom)) * error if freedom else math.inf
    return Paired(mean, error, mean - reach, mean + reach, float(share @ other))
