"""The Triton kernels of expert_ffn in the interpreter."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from planer.kernels.expert_ffn import expert_ffn
from planer.kernels.routing import Pairs
from planer.kernels.triton.tiles import Tile
from tests.kernels.checks import EXPERTS, Layer, check, poisoned, results, rounded


@pytest.mark.parametrize("layer", EXPERTS.values(), ids=EXPERTS.keys())
def test_outputs_and_gradients_equal_the_reference(layer):
    check(layer, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "layer", [Layer(k=1), Layer(k=2, activation="gelu"), Layer(k=1, activation="swiglu"), Layer(k=0)]
)
def test_half_precision(layer, dtype):
    check(layer, dtype)


@pytest.mark.parametrize("tile", [Tile(32, 16, 32, 4, 2), Tile(32, 32, 16, 4, 2)])
def test_other_tiles(tile, small_tiles):
    small_tiles(tile)
    check(Layer(tokens=48, d_model=64, d_inner=48, k=2), torch.float32)


def test_wide_rows(small_tiles):
    small_tiles(Tile(16, 512, 32, 4, 2))
    check(
        Layer(tokens=3, d_model=8_192, d_inner=24, experts=2, k=1, activation="swiglu"), torch.float32, tolerance=2e-6
    )


def test_tokens_without_experts_give_zeros():
    layer = Layer(tokens=5)
    nothing = torch.empty(0, dtype=torch.int64)
    values, _ = rounded(layer, torch.float32, "cpu")
    with poisoned():
        pairs = Pairs(nothing, nothing, None, 5, 4)
        got = results(expert_ffn, layer, values, None, pairs, torch.ones(5, layer.d_model), backend="triton")
    assert all(not value.any() for value in got.values())
    assert len(got) == 6


@pytest.mark.parametrize("frozen", [("x",), ("w1", "b1", "gate"), ("w2", "b2"), ("x", "w1", "b1", "w2", "b2")])
def test_gradients_of_some_values_only(frozen):
    check(Layer(tokens=20), torch.float32, frozen=frozen)


def outputs(layer, x, pairs, gate, **changes):
    values = {**rounded(layer, torch.float32, "cpu")[0], "x": x, **changes}
    dy = torch.linspace(-1, 1, x.numel()).view(x.shape)
    return results(expert_ffn, layer, values, gate, pairs, dy, backend="triton")


def test_strided_inputs_and_gradients():
    layer = Layer(tokens=20)
    values, gate = rounded(layer, torch.float32, "cpu")
    expected = outputs(layer, values["x"], layer.pairs(), gate)
    wide = torch.stack((values["x"].detach(), torch.zeros_like(values["x"])), dim=2).requires_grad_()
    w1 = values["w1"].detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    strided = outputs(layer, wide[..., 0], layer.pairs(), gate, w1=w1)
    assert all(strided[name].equal(expected[name]) for name in strided)
    expanded = expert_ffn(*values.values(), dataclasses.replace(layer.pairs(), gate=gate), backend="triton").sum()
    assert torch.autograd.grad(expanded, values["b2"])[0].isfinite().all()


@pytest.mark.parametrize("activation", ["relu", "silu", "swiglu"])
def test_dropout_equals_the_loop(activation):
    layer = Layer(k=1, bias=False, activation=activation)
    values, gate = rounded(layer, torch.float32, "cpu")
    pairs = dataclasses.replace(layer.pairs(), gate=gate)
    y = {}
    for backend in ("triton", "loop"):
        torch.manual_seed(0)
        y[backend] = expert_ffn(*values.values(), pairs, 0.4, True, activation, backend)
    torch.testing.assert_close(y["triton"], y["loop"], rtol=1e-5, atol=1e-5)
    leaves = [values["x"], values["w1"], values["w2"], gate]
    for ours, expected in zip(*(torch.autograd.grad(out.square().sum(), leaves) for out in y.values()), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_two_runs_give_the_same_bits():
    layer = Layer(tokens=20, k=2)
    values, gate = rounded(layer, torch.float32, "cpu")
    first, second = (outputs(layer, values["x"], layer.pairs(), gate) for _ in range(2))
    assert all(first[name].equal(second[name]) for name in first)


@pytest.mark.parametrize("k", [1, 2])
def test_a_token_alone_gives_the_same_bits_as_among_others(k):
    layer = Layer(tokens=20, k=k)
    values, gate = rounded(layer, torch.float32, "cpu")
    together = outputs(layer, values["x"], layer.pairs(), gate)["y"]
    some = [5, 19]
    chosen = torch.cat([torch.arange(t * k, t * k + k) for t in some])
    pairs = Pairs(torch.arange(2).repeat_interleave(k), layer.pairs().expert[chosen], None, 2, layer.experts, k)
    x, gate = values["x"].detach()[some].requires_grad_(), gate.detach()[chosen].requires_grad_()
    alone = outputs(layer, x, pairs, gate)
    assert alone["y"].equal(together[some])


def test_permuting_tokens_permutes_outputs_and_gradients():
    layer = Layer(tokens=20, k=2)
    values, gate = rounded(layer, torch.float32, "cpu")
    order = torch.randperm(layer.tokens, generator=torch.Generator().manual_seed(0))
    pairs = layer.pairs()
    shuffled = dataclasses.replace(pairs, expert=pairs.expert.view(-1, 2)[order].flatten())
    dy = torch.linspace(-1, 1, values["x"].numel()).view(values["x"].shape)
    ours = results(expert_ffn, layer, values, gate, pairs, dy, backend="triton")
    x = values["x"].detach()[order].requires_grad_()
    other_gate = gate.detach().view(-1, 2)[order].flatten().requires_grad_()
    other = results(expert_ffn, layer, {**values, "x": x}, other_gate, shuffled, dy[order], backend="triton")
    assert other["y"].equal(ours["y"][order])
    assert other["dx"].equal(ours["dx"][order])
    assert other["dgate"].view(-1, 2).equal(ours["dgate"].view(-1, 2)[order])
    for name in ("dw1", "db1", "dw2", "db2"):
        torch.testing.assert_close(other[name], ours[name], rtol=1e-5, atol=1e-5)


def test_relabelling_experts_changes_nothing():
    layer = Layer(tokens=20, k=2)
    values, gate = rounded(layer, torch.float32, "cpu")
    ours = outputs(layer, values["x"], layer.pairs(), gate)
    names = torch.tensor([2, 0, 3, 1])  # expert e becomes expert names[e]
    pairs = dataclasses.replace(layer.pairs(), expert=names[layer.pairs().expert])
    weights = {n: v.detach()[names.argsort()].requires_grad_() for n, v in values.items() if n != "x"}
    other = outputs(layer, values["x"], pairs, gate, **weights)
    for name in ("y", "dx", "dgate"):
        assert other[name].equal(ours[name])
    for name in ("dw1", "db1", "dw2", "db2"):
        assert other[name][names].equal(ours[name])


def test_equal_experts_equal_a_dense_layer():
    layer = Layer(k=1, gated=False)
    values, _ = rounded(layer, torch.float32, "cpu")
    same = {n: v.detach()[:1].expand_as(v) for n, v in values.items() if n != "x"}
    w1, b1, w2, b2 = (v[0].double() for v in same.values())
    dense = torch.relu(values["x"].double() @ w1.T + b1) @ w2.T + b2
    torch.testing.assert_close(
        outputs(layer, values["x"], layer.pairs(), None, **same)["y"].double(), dense, rtol=1e-5, atol=1e-5
    )
