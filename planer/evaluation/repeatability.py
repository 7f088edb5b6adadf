"""Does a search find the same network again, and is that network as good as the baseline?

A repeat is the search and training of a variant with other random streams (``-seed<k>``).  For n repeats, and n of the
baseline, this reports how often they choose the same block, the spread of latency and quality, and whether the
variant's quality is worse than the baseline's by at most a margin (non-inferiority, lower is better):

    H0: mu_v >= (1 + m) mu_b        H1: mu_v < (1 + m) mu_b

with Welch's t for independent groups of unequal variances s_v^2 and s_b^2.  The margin scales the baseline's mean, and
so its variance:

    D = v - (1 + m) b,   A = s_v^2 / n,   B = (1 + m)^2 s_b^2 / n,   T = D / sqrt(A + B),
    df = (A + B)^2 / (A^2 / (n - 1) + B^2 / (n - 1)),   p = P(t_df <= T)

The upper confidence bound is the factor 1 + m for which p is alpha, minus 1 (Fieller's bound for a ratio of means).  It
is below the margin exactly when p is below alpha.  Power is exact for normal values: given the two sample variances, D
is normal and the critical value is known.  The probability of rejection is averaged over the sample variances, which
are scaled chi squares.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import brentq
from scipy.stats import chi2, norm
from scipy.stats import t as student

from planer.config import RepeatabilityConfig
from planer.errors import UserError
from planer.evaluation.comparison import headline

QUANTILES = 100
"""Points of either sample variance's distribution at which the power is evaluated."""

MAX_REPEATS = 2**20
"""The number of repeats that are needed is looked for up to here."""


def repeatability(config: RepeatabilityConfig, variant: Sequence[dict], baseline: Sequence[dict]) -> dict:
    """The content of repeatability.json.

    variant, baseline: contents of eval.json, one per repeat, at least two of each.
    """
    first = variant[0]
    unit = first["quality"]["unit"]
    found, reference = ([e["quality"]["final"]["test"][unit] for e in group] for group in (variant, baseline))
    latencies = [headline(evaluation) for evaluation in variant]
    return {
        "experiment": first["experiment"],
        "variant": first["variant"],
        "networks": [{"variant": e["variant"], "pattern": e["architecture"]["pattern"]} for e in variant],
        "agreement": agreement([[block["option"] for block in e["architecture"]["blocks"]] for e in variant]),
        "latency": {
            "relative_to": "the baseline's latency",
            "table": spread([row["table_ms"] / row["baseline_table_ms"] for row in latencies]),
            "measured": spread([row["median_ms"] / row["baseline_median_ms"] for row in latencies]),
        },
        "quality": {
            "split": "test",
            "unit": unit,
            "variant": spread(found),
            "baseline": spread(reference),
            "relative_to": "the mean of the baseline's repeats",
            "relative": spread([value / np.mean(reference) for value in found]),
        },
        "non_inferiority": non_inferiority(found, reference, config.margin, config.alpha, config.power),
    }


def agreement(choices: Sequence[Sequence[str]]) -> dict:
    """Share of pairs of repeats with the same option, per position and on average; choices: [repeats, positions]."""
    pairs = list(itertools.combinations(choices, 2))
    shares = [
        sum(one[position] == other[position] for one, other in pairs) / len(pairs)
        for position in range(len(choices[0]))
    ]
    return {"mean": float(np.mean(shares)), "positions": shares}


def spread(values: Sequence[float]) -> dict:
    """Mean, standard deviation (n - 1), smallest, largest, and the values."""
    values = [float(value) for value in values]
    summary = {"mean": float(np.mean(values)), "standard_deviation": float(np.std(values, ddof=1))}
    return summary | {"min": min(values), "max": max(values), "values": values}


def non_inferiority(
    variant: Sequence[float], baseline: Sequence[float], margin: float, alpha: float, power: float
) -> dict:
    """One-sided test that the variant's mean is less than 1 + margin times the baseline's; lower values are better.

    Returns the test's numbers, the estimated excess over the baseline and its one-sided upper bound as shares of the
    baseline's mean (None without a bound), and the repeats per group that would show non-inferiority with the wanted
    power if the variant were as good as the baseline.
    """
    statistic, freedom, p_value = welch(variant, baseline, 1 + margin)
    return {
        "hypothesis": "the variant's mean is at least (1 + margin) times the baseline's",
        "margin": margin,
        "alpha": alpha,
        "n": {"variant": len(variant), "baseline": len(baseline)},
        "estimate": float(np.mean(variant) / np.mean(baseline) - 1),
        "upper_bound": upper_bound(variant, baseline, alpha),
        "statistic": statistic,
        "degrees_of_freedom": freedom,
        "p_value": p_value,
        "verdict": "non-inferior" if p_value < alpha else "not shown to be non-inferior",
        "power": power,
        "repeats_needed": repeats_needed(variant, baseline, margin, alpha, power),
    }


def welch(variant: Sequence[float], baseline: Sequence[float], factor: float) -> tuple[float, float, float]:
    """T, degrees of freedom and p of H0: the variant's mean is at least factor times the baseline's.

    Both groups need at least two values.  Raises UserError when neither group varies.
    """
    found = np.var(variant, ddof=1) / len(variant)
    reference = factor**2 * np.var(baseline, ddof=1) / len(baseline)
    if found + reference == 0:
        raise UserError("all repeats have the same quality: there is no noise to test a difference against")
    statistic = (np.mean(variant) - factor * np.mean(baseline)) / math.sqrt(found + reference)
    freedom = _freedom(found, reference, len(variant), len(baseline))
    return float(statistic), float(freedom), float(student.cdf(statistic, freedom))


def _freedom(first, second, first_n: int, second_n: int):
    """Welch and Satterthwaite's degrees of freedom of the sum of two squared standard errors."""
    return (first + second) ** 2 / (first**2 / (first_n - 1) + second**2 / (second_n - 1))


def upper_bound(variant: Sequence[float], baseline: Sequence[float], alpha: float) -> float | None:
    """The largest excess of the variant's mean, as a share of the baseline's, that the test at alpha does not reject.

    None when it rejects nothing, because the baseline's mean may be 0.
    """
    ratio = float(np.mean(variant) / np.mean(baseline))
    highest = ratio
    for _ in range(20):
        highest *= 2
        if welch(variant, baseline, highest)[2] < alpha:
            return brentq(lambda factor: welch(variant, baseline, factor)[2] - alpha, ratio, highest) - 1
    return None


def power_of(
    repeats: int, variance: float, baseline_variance: float, mean: float, margin: float, alpha: float
) -> float:
    """Probability that the test with ``repeats`` per group shows non-inferiority when both true means are ``mean``."""
    true, true_baseline = variance / repeats, (1 + margin) ** 2 * baseline_variance / repeats
    ratios = chi2.ppf((np.arange(QUANTILES) + 0.5) / QUANTILES, repeats - 1) / (repeats - 1)  # sample / true
    sample, baseline = true * ratios[:, None], true_baseline * ratios
    critical = student.ppf(alpha, _freedom(sample, baseline, repeats, repeats)) * np.sqrt(sample + baseline)
    return float(norm.cdf((critical + margin * mean) / math.sqrt(true + true_baseline)).mean())


def repeats_needed(
    variant: Sequence[float], baseline: Sequence[float], margin: float, alpha: float, power: float
) -> int | None:
    """Fewest repeats per group with at least this power at the variances observed; None beyond MAX_REPEATS."""
    variances = np.var(variant, ddof=1), np.var(baseline, ddof=1)

    def enough(repeats: int) -> bool:
        return power_of(repeats, *variances, float(np.mean(baseline)), margin, alpha) >= power

    high = 2
    while not enough(high):
        high *= 2
        if high > MAX_REPEATS:
            return None
    low = high // 2  # too few, or 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
