"""Paired comparisons of losses: exact cases, invariances and coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import ttest_rel

from planer.paired import compare_pairs

TOKENS = np.random.default_rng(3).integers(50, 100, 40)


@pytest.fixture
def losses() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    text = random.normal(1.6, 0.3, len(TOKENS))
    return text + random.normal(0.01, 0.004, len(TOKENS)), text


def test_equal_networks_have_difference_0(losses):
    found = compare_pairs(losses[0], losses[0].copy(), TOKENS)
    assert (found.difference, found.standard_error, found.low, found.high) == (0, 0, 0, 0)
    assert found.word == "not told apart" and found.share_interval == (0, 0)


def test_difference_is_that_of_the_means_over_all_tokens(losses):
    own, other = losses
    found = compare_pairs(own, other, TOKENS)
    means = [np.average(values, weights=TOKENS) for values in losses]
    assert found.difference == pytest.approx(means[0] - means[1]) and found.reference == pytest.approx(means[1])
    assert found.share == pytest.approx(means[0] / means[1] - 1)
    assert found.share_interval == pytest.approx((found.low / means[1], found.high / means[1]))


def test_with_equal_weights_it_is_the_paired_t_test(losses):
    expected = ttest_rel(*losses)
    found, interval = compare_pairs(*losses), expected.confidence_interval(0.95)
    assert found.difference / found.standard_error == pytest.approx(expected.statistic)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    weighted = compare_pairs(*losses, [7] * len(TOKENS))
    assert (weighted.low, weighted.high) == pytest.approx((found.low, found.high))


def test_the_difficulty_of_segments_does_not_change_the_interval(losses):
    own, other = losses
    hard = np.random.default_rng(1).normal(0, 5, len(TOKENS))
    found, shifted = compare_pairs(own, other, TOKENS), compare_pairs(own + hard, other + hard, TOKENS)
    for name in ("difference", "standard_error", "low", "high"):
        assert getattr(shifted, name) == pytest.approx(getattr(found, name), abs=1e-12)


def test_a_constant_shifts_the_interval_and_exchanged_networks_mirror_it(losses):
    own, other = losses
    found, moved = compare_pairs(own, other, TOKENS), compare_pairs(own - 0.5, other, TOKENS)
    assert (moved.low, moved.high) == pytest.approx((found.low - 0.5, found.high - 0.5))
    mirrored = compare_pairs(other, own, TOKENS)
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low))
    assert (found.word, moved.word, mirrored.word) == ("worse", "better", "better")


def test_one_pair_tells_nothing_apart():
    found = compare_pairs([1.5], [1.6])
    assert found.difference == pytest.approx(-0.1)
    assert (found.low, found.high, found.word) == (-math.inf, math.inf, "not told apart")


@pytest.mark.parametrize(("own", "other", "weights"), [([], [], None), ([1.0, 2.0], [1.0], None), ([1.0], [1.0], [])])
def test_unpaired_losses_are_refused(own, other, weights):
    with pytest.raises(ValueError, match="no pairs"):
        compare_pairs(own, other, weights)


@pytest.mark.parametrize("segments", [4, 64])
def test_95_percent_of_intervals_contain_the_true_difference(segments):
    """Segments of unequal length whose losses have the variance of means over their tokens."""
    random = np.random.default_rng(segments)
    true, repeats = 0.01, 2000
    tokens = random.integers(50, 100, segments)
    text = random.normal(1.6, 0.3, (repeats, segments))
    own = text + random.normal(true, 0.3 / np.sqrt(tokens), (repeats, segments))
    found = [compare_pairs(*pair, tokens) for pair in zip(own, text, strict=True)]
    covered = np.mean([pair.low <= true <= pair.high for pair in found])
    assert covered == pytest.approx(0.95, abs=0.015)
