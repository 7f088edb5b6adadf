"""Selectors of the experts that a token runs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from planer.conversion.selectors import (
    ALL,
    GRID,
    Selector,
    expected_share,
    quantiles_of,
    score_quantiles,
    share_threshold,
)
from planer.errors import UserError

SCORES = torch.rand(40, 12, generator=torch.Generator().manual_seed(0))


def mask(name: str, value: float, scores: torch.Tensor = SCORES) -> torch.Tensor:
    theta = share_threshold(quantiles_of(SCORES), value) if name == "absolute" else 0.0
    return Selector(name, value).mask(scores, theta)


@pytest.mark.parametrize("value", [0.05, 0.3, 0.5, 0.9, 1.0])
def test_cumulative_runs_the_smallest_prefix_that_reaches_the_share(value):
    chosen = mask("cumulative", value).numpy()
    for row, scores in zip(chosen, SCORES.double().numpy(), strict=True):
        order = np.argsort(-scores)
        sums = np.cumsum(scores[order]) / scores.sum()
        count = int(np.searchsorted(sums, value - 1e-7)) + 1
        assert row.sum() == count and row[order[:count]].all()


def test_top_k_runs_the_k_best():
    for row, scores in zip(mask("top_k", 3), SCORES, strict=True):
        assert row.sum() == 3 and scores[row].min() > scores[~row].max()


@pytest.mark.parametrize("share", [0.01, 0.1, 0.37, 0.8, 1.0])
def test_absolute_runs_the_wanted_share_of_calibration_tokens(share):
    assert mask("absolute", share).float().mean().item() == pytest.approx(share, abs=1.5 / GRID)


def test_absolute_gives_strong_tokens_more_experts():
    scores = torch.cat((SCORES, 3 * SCORES))
    counts = mask("absolute", 0.3, scores).sum(-1)
    assert counts[40:].sum() > 2 * counts[:40].sum()


@pytest.mark.parametrize("name", ["dynamic_k", "absolute", "cumulative", "top_k"])
def test_the_chosen_experts_are_always_the_best(name):
    chosen = mask(name, 4 if name == "top_k" else 0.4)
    for row, scores in zip(chosen, SCORES, strict=True):
        assert 0 < row.sum() < 12
        assert scores[row].min() > scores[~row].max()


@pytest.mark.parametrize("name", ["dynamic_k", "cumulative", "top_k"])
def test_relative_selectors_do_not_depend_on_the_scale(name):
    value = 4 if name == "top_k" else 0.4
    assert torch.equal(mask(name, value, 8 * SCORES), mask(name, value))


@pytest.mark.parametrize("name", ["dynamic_k", "cumulative"])
def test_a_token_with_scores_of_0_runs_all(name):
    assert mask(name, 0.4, torch.zeros(2, 5)).all()


@pytest.mark.parametrize("name", ["dynamic_k", "absolute", "cumulative", "top_k"])
def test_an_expert_with_a_score_of_nan_runs(name):
    scores = SCORES.clone()
    scores[3, 5] = torch.nan
    chosen = mask(name, 2 if name == "top_k" else 0.4, scores)
    assert chosen[3, 5] and not chosen[2].all()
    assert chosen[3].all() == (name in ("dynamic_k", "cumulative"))


@pytest.mark.parametrize("name", ["dynamic_k", "absolute", "cumulative", "top_k"])
@pytest.mark.parametrize("value", [0.1, 0.5, 0.95])
def test_the_expected_share_is_that_of_the_calibration_tokens(name, value):
    value = round(12 * value) if name == "top_k" else value
    expected = expected_share(Selector(name, value), score_quantiles(SCORES), 12)
    assert expected == pytest.approx(mask(name, value).double().mean().item(), abs=2 / GRID)


def test_before_calibration_the_expected_share_is_nan():
    nothing = torch.full((3, GRID + 1), torch.nan)
    assert math.isnan(expected_share(Selector("dynamic_k", 0.5), nothing, 12))
    assert expected_share(ALL, nothing, 12) == 1


def test_all_runs_all_experts():
    assert ALL.mask(SCORES, 0.0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tau", 0.1), "'tau' is unknown; allowed: all, dynamic_k, absolute, top_k, cumulative"),
        (("top_k", 2, "best"), "'best' is unknown; allowed: router, oracle, random"),
        (("dynamic_k", 1.1), "dynamic_k of 1.1; allowed: 0 to 1"),
        (("absolute", 0), "absolute of 0; allowed: above 0 to 1"),
        (("cumulative", float("nan")), "cumulative of nan; allowed: above 0 to 1"),
        (("top_k", 0), "top_k of 0; allowed: integers from 1"),
        (("top_k", 1.5), "top_k of 1.5; allowed: integers from 1"),
    ],
)
def test_values_outside_the_range_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        Selector(*arguments)


def test_absolute_before_the_calibration_is_refused():
    with pytest.raises(UserError, match="calibrate the network first"):
        share_threshold(torch.full((GRID + 1,), torch.nan), 0.5)
