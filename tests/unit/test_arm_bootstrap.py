"""The paired bootstrap of arms."""

from __future__ import annotations

import numpy as np
import pytest

from planer.evaluation.arms.bootstrap import difference
from planer.paired import compare_pairs
from planer.tasks.metrics import Scores


def text(nll: np.ndarray) -> Scores:
    return Scores(nll, np.full(len(nll), 64))


def labelled(predicted: np.ndarray, labels: np.ndarray) -> Scores:
    return Scores(np.zeros(len(labels)), np.ones(len(labels)), predicted, labels)


def test_the_interval_of_a_mean_is_near_student_s_t():
    random = np.random.default_rng(0)
    reference = random.normal(3, 1, 400)
    own = reference + random.normal(0.1, 0.3, 400)
    exact = compare_pairs(own, reference)
    found = difference("nll", text(own), text(reference), seed=1)
    width = exact.high - exact.low
    assert found["value"] == pytest.approx(exact.difference)
    assert found["low"] == pytest.approx(exact.low, abs=0.1 * width)
    assert found["high"] == pytest.approx(exact.high, abs=0.1 * width)


def test_equal_predictions_have_an_empty_interval():
    labels = np.arange(50) % 3
    scores = labelled((labels * 2) % 3, labels)
    for metric in ("accuracy", "macro_f1"):
        assert difference(metric, scores, scores, seed=0) == {"value": 0, "low": 0, "high": 0}


def test_samples_are_paired():
    """Both networks fail on the same samples but one: the interval is narrow."""
    labels = np.zeros(200, np.int64)
    reference = (np.arange(200) % 2).astype(np.int64)
    own = reference.copy()
    own[0] = 1
    found = difference("accuracy", labelled(own, labels), labelled(reference, labels), seed=0)
    assert found["value"] == pytest.approx(-1 / 200)
    assert -4 / 200 <= found["low"] <= found["high"] <= 0


def test_different_numbers_of_samples_are_refused():
    with pytest.raises(ValueError, match="3 and 2 samples"):
        difference("nll", text(np.ones(3)), text(np.ones(2)), seed=0)


def test_resamples_without_counted_tokens_are_left_out():
    own, reference = (Scores(np.array([nll, 0.0, 0.0]), np.array([4.0, 0.0, 0.0])) for nll in (2.5, 2.0))
    assert difference("nll", own, reference, seed=0) == {"value": 0.5, "low": 0.5, "high": 0.5}
