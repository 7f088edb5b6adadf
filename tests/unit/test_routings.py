"""Routers of timed mixtures give the requested loads."""

from __future__ import annotations

import pytest
import torch
from toy import experiment

from planer.blocks.moe import MoE
from planer.latency.networks import Pool
from planer.latency.routings import ROUTINGS, set_routing, zipf_shares
from planer.runtime import Runtime
from planer.specs import MoE as Spec

WIDTH, TOKENS = 64, 20_000


def load(num_experts: int, top_k: int, routing: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Share of random tokens that each expert gets."""
    generator = torch.Generator().manual_seed(0)
    moe = MoE(Spec(8, num_experts, top_k), WIDTH, 0.0).to(dtype).eval()
    torch.nn.init.normal_(moe.gate, 0.0, 0.02, generator=generator)
    set_routing(moe.gate, routing)
    with torch.inference_mode():
        _, aux = moe(torch.randn(TOKENS, WIDTH, generator=generator).to(dtype), ("load",))
    assert aux["load"].sum() == TOKENS * top_k
    return aux["load"].double() / aux["load"].sum()


@pytest.mark.parametrize("num_experts", [3, 4, 8, 16, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_skewed_loads_follow_zipf(num_experts, dtype):
    torch.testing.assert_close(load(num_experts, 1, "skewed", dtype), zipf_shares(num_experts), rtol=0, atol=0.015)


def test_zipf_shares_of_3_and_8_experts():
    assert zipf_shares(3).tolist() == pytest.approx([6 / 13, 4 / 13, 3 / 13])
    eight = zipf_shares(8)
    assert eight.sum() == pytest.approx(1) and eight[0] * 8 == pytest.approx(2.19, abs=0.01)
    assert eight[0] / eight[-1] == pytest.approx(4.5)


def test_skewed_loads_of_top_2():
    """They are less skewed, in the same order."""
    first, found = zipf_shares(8), load(8, 2, "skewed")
    assert found.tolist() == sorted(found.tolist(), reverse=True)
    assert 1.4 / 8 < found.max() < first.max() and first.min() < found.min() < 0.7 / 8


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_one_sends_all_tokens_to_the_same_experts(top_k):
    assert load(8, top_k, "one").tolist() == [1 / top_k] * top_k + [0.0] * (8 - top_k)


def test_balanced_keeps_the_random_router():
    assert load(8, 1, "balanced").max() < 1.5 / 8
    assert load(2, 1, "skewed").max() < 0.55, "skewed routing does not work with two experts"
    with pytest.raises(ValueError, match="allowed: balanced, skewed, one"):
        set_routing(torch.zeros(4, 8), "random")


@pytest.mark.parametrize("top_k", [1, 2])
def test_stacks_of_a_pool_have_the_requested_routing(top_k):
    """In every layer; the experts share the memory of the balanced block."""
    config = experiment(model={"d_model": 128}, workload={"batch": 32})
    spec = Spec(64, 8, top_k)
    pool = Pool(config.model.architecture(256, ()), {spec: 4}, config.workload, Runtime())
    busiest = {}
    for routing in ROUTINGS:
        sublayers, seen = [pool._block(place, routing).sublayer for place in range(4)], []
        hooks = [
            moe.register_forward_pre_hook(lambda moe, given, seen=seen: seen.append(given[0])) for moe in sublayers
        ]
        pool.network((spec,) * 4, "cached", head=False, routing=routing)()
        for hook in hooks:
            hook.remove()
        with torch.inference_mode():
            loads = [moe(x, ("load",))[1]["load"].double() for moe, x in zip(sublayers, seen, strict=True)]
        loads = torch.stack([load / load.sum() for load in loads])
        busiest[routing] = loads.max(dim=1).values
        if routing == "one":
            assert (loads[:, :top_k] == 1 / top_k).all()
        if routing == "skewed" and top_k == 1:
            torch.testing.assert_close(loads, zipf_shares(8).expand(4, 8), rtol=0, atol=0.08)
        for moe, block in zip(sublayers, pool._model.blocks, strict=True):
            assert moe.experts is block.sublayer.experts
            assert (moe.gate is block.sublayer.gate) == (routing == "balanced")
    assert (busiest["balanced"] < 1.8 / 8).all()
    assert (busiest["skewed"] > busiest["balanced"]).all()
