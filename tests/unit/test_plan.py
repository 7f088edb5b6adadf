"""The routing plan: pairs of tokens and experts in the order of experts."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planer.kernels.routing import Pairs, plan, top_k

EXPERTS = 5


@st.composite
def pair_lists(draw):
    """Pairs of tokens with k experts each, or with any number of experts, also none."""
    if draw(st.booleans()):
        k = draw(st.integers(1, EXPERTS))
        logits = torch.randn(draw(st.integers(0, 20)), EXPERTS, generator=torch.Generator().manual_seed(k))
        return top_k(logits, k)[0]
    chosen = draw(st.lists(st.lists(st.integers(0, EXPERTS - 1), unique=True), max_size=20))
    token = torch.tensor([t for t, experts in enumerate(chosen) for _ in experts], dtype=torch.int64)
    expert = torch.tensor([e for experts in chosen for e in experts], dtype=torch.int64)
    return Pairs(token, expert, None, len(chosen), EXPERTS)


@given(pair_lists())
@settings(max_examples=100)
def test_the_order_has_every_pair_once_and_an_inverse(pairs):
    p = plan(pairs)
    everything = list(range(len(pairs.token)))
    assert sorted(p.order.tolist()) == everything
    assert p.order[p.inverse].tolist() == p.inverse[p.order].tolist() == everything
    assert torch.equal(p.token, pairs.token[p.order])


@given(pair_lists())
@settings(max_examples=100)
def test_pairs_are_stably_sorted_by_expert(pairs):
    p = plan(pairs)
    assert p.order.tolist() == sorted(range(len(pairs.expert)), key=pairs.expert.tolist().__getitem__)
    assert p.offsets[0] == 0
    assert p.offsets.diff().tolist() == [(pairs.expert == e).sum() for e in range(EXPERTS)]
    for e in range(EXPERTS):
        assert (pairs.expert[p.order[p.offsets[e] : p.offsets[e + 1]]] == e).all()


@given(pair_lists())
@settings(max_examples=100)
def test_token_offsets_find_the_pairs_of_a_token(pairs):
    p = plan(pairs)
    assert len(p.token_offsets) == pairs.num_tokens + 1
    for t in range(pairs.num_tokens):
        rows = p.inverse[p.token_offsets[t] : p.token_offsets[t + 1]]
        assert (p.token[rows] == t).all()
        assert len(rows) == (pairs.token == t).sum()


def test_the_example_of_the_docstring():
    p = plan(Pairs(torch.tensor([0, 1, 1, 2]), torch.tensor([1, 0, 1, 0]), None, 3, 2))
    assert (p.order.tolist(), p.inverse.tolist()) == ([1, 3, 0, 2], [2, 0, 3, 1])
    assert (p.token.tolist(), p.offsets.tolist(), p.token_offsets.tolist()) == ([1, 2, 0, 1], [0, 2, 4], [0, 1, 3, 4])
