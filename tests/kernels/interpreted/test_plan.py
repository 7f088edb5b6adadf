"""The Triton plan equals the one of PyTorch."""

from __future__ import annotations

import pytest
import torch

from planer.kernels.routing import Pairs, plan_reference
from planer.kernels.routing.triton.plan import plan
from tests.kernels.checks import Layer, poisoned


def compared(pairs):
    reference = plan_reference(pairs)
    expected = reference.order, reference.inverse, reference.token, reference.offsets, reference.token_offsets
    with poisoned():
        ours = plan(pairs.expert, pairs.token, pairs.num_experts, pairs.per_token)
    return zip(ours, expected, strict=True)


@pytest.mark.parametrize("routing", ["random", "one_hot", "half"])
@pytest.mark.parametrize("k", [0, 1, 2, 3])
@pytest.mark.parametrize(("tokens", "experts"), [(0, 3), (1, 3), (64, 3), (70, 16), (20, 33)])
def test_equal_to_the_reference(tokens, experts, k, routing):
    pairs = Layer(tokens=tokens, experts=experts, k=k, routing=routing).pairs()
    for ours, expected in compared(pairs):
        if ours is None:
            assert not k, "PyTorch makes token_offsets where tokens differ in their number of experts"
        else:
            assert ours.dtype == expected.dtype
            assert ours.equal(expected)


def test_one_expert():
    pairs = Pairs(torch.arange(70), torch.zeros(70, dtype=torch.int64), None, 70, 1, 1)
    assert all(ours.equal(expected) for ours, expected in compared(pairs))


@pytest.mark.parametrize("k", [0, 2])
def test_the_operator_is_well_formed_and_equal(k):
    pairs = Layer(tokens=20, k=k).pairs()
    arguments = pairs.expert, pairs.token, pairs.num_tokens, pairs.num_experts, pairs.per_token
    torch.library.opcheck(torch.ops.planer.plan, arguments)
    for ours, expected in zip(torch.ops.planer.plan(*arguments), vars(plan_reference(pairs)).values(), strict=True):
        assert ours.equal(expected)
