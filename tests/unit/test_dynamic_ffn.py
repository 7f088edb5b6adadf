"""Dynamically executed experts: both ways of computing them against the definition, and the choice between the two."""

from __future__ import annotations

import pytest
import torch

from planer.kernels import dynamic_ffn as module
from planer.kernels.dynamic_ffn import dynamic_ffn, dynamic_ffn_reference, gathering_pays

D = 6


def arguments(tokens, neurons, dtype=torch.float64):
    generator = torch.Generator().manual_seed(tokens + neurons)
    shapes = (tokens, D), (neurons, D), (neurons,), (neurons, D), (D,)
    return [torch.randn(shape, dtype=dtype, generator=generator).requires_grad_() for shape in shapes]


def masks(tokens, experts):
    generator = torch.Generator().manual_seed(tokens * experts)
    some = torch.rand(tokens, experts, generator=generator) < 0.4
    some[:, 0] = False
    return {"some": some, "all": torch.ones_like(some), "none": torch.zeros_like(some)}


@pytest.fixture(params=[True, False], ids=["gathered", "masked"])
def gathered(request, monkeypatch):
    monkeypatch.setattr(module, "gathering_pays", lambda *_: request.param)


@pytest.mark.parametrize("kind", ["some", "all", "none"])
@pytest.mark.parametrize(("tokens", "neurons", "experts"), [(13, 12, 4), (1, 12, 3), (5, 8, 8), (4, 6, 1)])
def test_outputs_and_all_gradients(gathered, kind, tokens, neurons, experts):
    values, mask = arguments(tokens, neurons), masks(tokens, experts)[kind]
    results = []
    for function in (dynamic_ffn, dynamic_ffn_reference):
        y = function(*values, mask)
        results.append((y, *torch.autograd.grad(y.square().sum(), values, materialize_grads=True)))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected)


def test_all_experts_are_the_dense_layer(gathered):
    x, w1, b1, w2, b2 = arguments(7, 12)
    dense = torch.relu(x @ w1.T + b1) @ w2 + b2
    torch.testing.assert_close(dynamic_ffn(x, w1, b1, w2, b2, masks(7, 4)["all"]), dense)


def test_arguments_are_left_alone(gathered):
    values = [value.detach() for value in arguments(1, 12)]
    copies = [value.clone() for value in values]
    dynamic_ffn(*values, masks(1, 3)["all"])
    for value, copy in zip(values, copies, strict=True):
        assert torch.equal(value, copy)


def test_under_autocast(gathered):
    values, mask = arguments(9, 12, torch.float32), masks(9, 4)["some"]
    with torch.autocast("cpu", torch.bfloat16):
        y = dynamic_ffn(*values, mask)
    torch.testing.assert_close(y.float(), dynamic_ffn(*values, mask), rtol=0.05, atol=0.1)


def test_gathering_pays_for_few_and_large_experts():
    shape, neurons = (1024, 128), 512
    small, large = 128, 4  # experts of 4 and of 128 neurons

    def pays(experts, share):
        return gathering_pays([int(share * 1024)] * experts, shape, neurons)

    assert pays(large, 0.25) and pays(large, 0.5)
    assert not pays(large, 1.0)
    assert not pays(small, 0.1)
    assert gathering_pays([0] * 15 + [1], (1, 512), 2048), "experts that nobody chose cost nothing"
