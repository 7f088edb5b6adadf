"""Routing by top-k and by threshold."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planer.kernels.routing import threshold, top_k


def test_top_1_gate_is_the_probability():
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0]])
    pairs, probabilities = top_k(logits, 1)
    assert pairs.expert.tolist() == [1, 0]
    assert pairs.token.tolist() == [0, 1]
    torch.testing.assert_close(probabilities, logits.softmax(-1))
    torch.testing.assert_close(pairs.gate, probabilities.amax(-1))


def test_top_2_gates_sum_to_one_and_are_in_token_order():
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, -1.0, 0.0]])
    pairs, probabilities = top_k(logits, 2)
    assert pairs.token.tolist() == [0, 0, 1, 1]
    assert pairs.expert.tolist() == [1, 2, 0, 2]
    chosen = probabilities[pairs.token, pairs.expert].view(2, 2)
    torch.testing.assert_close(pairs.gate.view(2, 2), chosen / chosen.sum(-1, keepdim=True))


@pytest.mark.parametrize("k", [1, 2, 4])
def test_ties_go_to_the_lowest_expert(k):
    pairs, _ = top_k(torch.zeros(5, 4), k)
    assert pairs.expert.view(5, k).tolist() == [list(range(k))] * 5


@pytest.mark.parametrize("k", [0, 5])
def test_top_k_refuses_impossible_k(k):
    with pytest.raises(ValueError, match=f"k is {k}; allowed: 1 to 4"):
        top_k(torch.zeros(2, 4), k)


def test_threshold_is_relative_to_the_maximum_of_a_token():
    scores = torch.tensor([[1.0, 0.5, 0.2], [10.0, 4.9, 5.0]])
    assert threshold(scores, 0.5).tolist() == [[True, True, False], [True, False, True]]


def test_thresholds_of_0_and_1():
    scores = torch.rand(50, 7, generator=torch.Generator().manual_seed(0))
    assert threshold(scores, 0.0).all()
    assert threshold(scores, 1.0).nonzero()[:, 1].tolist() == scores.argmax(-1).tolist()
    assert threshold(torch.zeros(3, 7), 1.0).all(), "with scores of 0, all experts run"
    with pytest.raises(ValueError, match="tau is 1.5; allowed: 0 to 1"):
        threshold(scores, 1.5)


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
def test_a_token_with_a_nan_among_its_scores_keeps_all_experts(tau):
    scores = torch.tensor([[math.nan, 1.0, 2.0], [math.nan] * 3, [1.0, 2.0, math.inf], [1.0, 2.0, 4.0]])
    kept = threshold(scores, tau)
    assert kept[:2].all()
    assert kept[2].tolist() == [tau == 0.0, tau == 0.0, True]
    assert kept[3].tolist() == [tau == 0.0, tau <= 0.5, True]


@given(st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=50)
def test_a_larger_tau_never_adds_an_expert(tau, other):
    scores = torch.rand(20, 6, generator=torch.Generator().manual_seed(1))
    few, many = threshold(scores, max(tau, other)), threshold(scores, min(tau, other))
    assert (few <= many).all()
    assert few.any(dim=1).all()
