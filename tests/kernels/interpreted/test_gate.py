"""The fused router equals PyTorch's."""

from __future__ import annotations

import math

import pytest
import torch

from planer.kernels.routing import linear_fp32, plan_reference, top_k
from planer.kernels.routing.triton import gate as module
from planer.kernels.triton.tiles import Tile
from tests.kernels.checks import poisoned


@pytest.fixture(autouse=True)
def small_gate(monkeypatch):
    monkeypatch.setattr(module, "GATE", Tile(16, 16, 16, 4, 2))


def check(x, weight, k):
    with poisoned():
        expert, gate, token, *plan = module.gate(x, weight, k)
    pairs, _ = top_k(linear_fp32(x, weight), k)
    assert token.equal(pairs.token)
    assert expert.equal(pairs.expert)
    torch.testing.assert_close(gate, pairs.gate, rtol=1e-5, atol=1e-6, equal_nan=True)
    for ours, expected in zip(plan, vars(plan_reference(pairs)).values(), strict=True):
        assert ours.dtype == expected.dtype
        assert ours.equal(expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("tokens", "d_model", "experts", "k"),
    [(37, 24, 8, 1), (37, 40, 8, 2), (1, 16, 3, 3), (20, 16, 20, 3), (9, 16, 1, 1)],
)
def test_experts_gates_and_plan(tokens, d_model, experts, k, dtype):
    generator = torch.Generator().manual_seed(tokens + experts)
    x, weight = (torch.randn(n, d_model, generator=generator).to(dtype) for n in (tokens, experts))
    check(x, weight, k)


def test_the_operator_is_well_formed():
    torch.library.opcheck(torch.ops.planer.route, (torch.randn(20, 16), torch.randn(5, 16), 2))


@pytest.mark.parametrize("k", [1, 3])
def test_ties_go_to_the_lowest_expert(k):
    check(torch.randn(20, 16), torch.zeros(5, 16), k)


@pytest.mark.parametrize("k", [1, 3])
def test_tokens_of_nan_and_infinity_have_valid_experts(k):
    x = torch.randn(20, 16, generator=torch.Generator().manual_seed(0))
    x[3] = math.nan
    x[5] = math.inf
    expert, gate, _, order, *_ = module.gate(x, torch.eye(5, 16), k)
    assert gate.view(20, k)[3].isnan().all()
    assert all(len(set(row)) == k and max(row) < 5 for row in expert.view(20, k).tolist())
    assert sorted(order.tolist()) == list(range(20 * k))
