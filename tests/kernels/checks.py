"""Checks of the Triton kernels, for its interpreter on a CPU and for CUDA."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from unittest import mock

import torch
import torch.nn.functional as F

from planer.kernels.activations import activate, factors, function_of
from planer.kernels.dynamic_ffn import dynamic_ffn_reference
from planer.kernels.dynamic_ffn.triton import layer as dynamic_kernels
from planer.kernels.expert_ffn import expert_ffn, expert_ffn_reference
from planer.kernels.neuron_threshold import neuron_threshold_reference
from planer.kernels.neuron_threshold.triton import layer as threshold_kernels
from planer.kernels.routing import Pairs, top_k
from tests.unit.numerics import normalised_error

TOLERANCE = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 8e-3}
"""Largest errors against double precision, for sums of up to a hundred products."""


@dataclasses.dataclass(frozen=True)
class Layer:
    """Sizes of an expert layer and the routing of its tokens.

    k: experts per token; 0: a different number for every token, from none to all.
    routing: random; one_hot: all tokens to the expert before the last; half: tokens to the first half of the experts.
    """

    tokens: int = 37
    d_model: int = 24
    d_inner: int = 40
    experts: int = 4
    k: int = 2
    routing: str = "random"
    gated: bool = True
    bias: bool = True
    activation: str = "relu"

    def values(self, device="cpu") -> dict[str, torch.Tensor | None]:
        """x, w1, b1, w2, b2 in double precision, scaled so that outputs are about 1."""
        generator = torch.Generator().manual_seed(self.tokens + self.d_inner + self.k)

        def draw(*shape, scale=1.0):
            return (torch.randn(shape, generator=generator) * scale).double().to(device)

        n, d, i, e = self.tokens, self.d_model, self.d_inner, self.experts
        rows = factors(self.activation) * i
        return {
            "x": draw(n, d),
            "w1": draw(e, rows, d, scale=d**-0.5),
            "b1": draw(e, rows) if self.bias else None,
            "w2": draw(e, d, i, scale=i**-0.5),
            "b2": draw(e, d) if self.bias else None,
        }

    def pairs(self, device="cpu") -> Pairs:
        """Without gates."""
        generator = torch.Generator().manual_seed(self.tokens * self.experts)
        logits = torch.randn(self.tokens, self.experts, generator=generator)
        if self.routing == "one_hot":
            logits[:, -2] += 100
        if self.routing == "half":
            logits[:, self.experts // 2 :] -= 100
        if self.k:
            pairs, _ = top_k(logits, self.k)
            pairs = dataclasses.replace(pairs, gate=None)
        else:
            mask = logits > torch.linspace(-3, 3, self.tokens)[:, None]
            token, expert = mask.nonzero(as_tuple=True)
            pairs = Pairs(token, expert, None, self.tokens, self.experts)
        return dataclasses.replace(pairs, token=pairs.token.to(device), expert=pairs.expert.to(device))

    def gate(self, pairs: Pairs) -> torch.Tensor | None:
        """One number a pair, in double precision."""
        if not self.gated:
            return None
        generator = torch.Generator().manual_seed(len(pairs.token))
        return torch.rand(len(pairs.token), generator=generator).double().to(pairs.token.device)


EXPERTS = {
    "top-1": Layer(k=1),
    "top-2": Layer(k=2),
    "all experts": Layer(k=4),
    "any number of experts": Layer(k=0),
    "odd sizes": Layer(tokens=19, d_model=37, d_inner=29, experts=3, k=2),
    "one expert": Layer(experts=1, k=1),
    "one token": Layer(tokens=1, k=2),
    "one hot": Layer(routing="one_hot", k=1),
    "experts without tokens": Layer(routing="half", k=1),
    "experts without tokens, top-2": Layer(routing="half", k=2, experts=6),
    "no gates": Layer(gated=False, k=2),
    "no gates, top-1": Layer(gated=False, k=1),
    "no biases": Layer(bias=False, k=1),
    "GELU": Layer(activation="gelu", k=2),
    "GELU, no biases, any number": Layer(activation="gelu", bias=False, k=0),
    "tanh GELU": Layer(activation="gelu_tanh", k=1),
    "SiLU": Layer(activation="silu", k=2),
    "gated SiLU": Layer(activation="swiglu", k=2),
    "gated SiLU, odd sizes, any number": Layer(activation="swiglu", d_model=37, d_inner=29, k=0),
    "gated SiLU, experts without tokens": Layer(activation="swiglu", routing="half", bias=False, gated=False, k=1),
    "no tokens": Layer(tokens=0, k=2),
}


def results(function, layer: Layer, values: dict, gate, pairs: Pairs, dy, **options) -> dict[str, torch.Tensor]:
    """y, and the gradients of every value that requires one, by name."""
    named = {**values, "gate": gate}
    y = function(*values.values(), dataclasses.replace(pairs, gate=gate), activation=layer.activation, **options)
    leaves = {name: value for name, value in named.items() if value is not None and value.requires_grad}
    gradients = [torch.zeros_like(leaf) for leaf in leaves.values()]
    if y.requires_grad:
        gradients = torch.autograd.grad(y, list(leaves.values()), dy, materialize_grads=True)
    return {"y": y.detach(), **{f"d{name}": g for name, g in zip(leaves, gradients, strict=True)}}


def rounded(layer: Layer, dtype: torch.dtype, device, frozen: tuple[str, ...] = ()) -> tuple[dict, torch.Tensor | None]:
    """The layer's values in dtype, its gates in single precision, as leaves; those named frozen need no gradient."""
    values = {k: None if v is None else v.to(dtype) for k, v in layer.values(device).items()}
    gate = layer.gate(layer.pairs(device))
    gate = None if gate is None else gate.float()
    for name, value in {**values, "gate": gate}.items():
        if value is not None:
            value.requires_grad_(name not in frozen)
    return values, gate


def errors(
    layer: Layer, dtype: torch.dtype, device="cpu", oracle=expert_ffn_reference, frozen: tuple[str, ...] = ()
) -> dict[str, float]:
    """Normalised errors of output and gradients against the oracle in double precision, on the same inputs."""
    values, gate = rounded(layer, dtype, device, frozen)
    pairs = layer.pairs(device)
    generator = torch.Generator().manual_seed(1)
    dy = torch.randn(layer.tokens, layer.d_model, generator=generator).to(device, dtype)
    with poisoned():
        ours = results(expert_ffn, layer, values, gate, pairs, dy, backend="triton")
    double = {k: None if v is None else v.detach().double().requires_grad_(v.requires_grad) for k, v in values.items()}
    gate = None if gate is None else gate.detach().double().requires_grad_(gate.requires_grad)
    expected = results(oracle, layer, double, gate, pairs, dy.double())
    assert ours.keys() == expected.keys()
    return {name: normalised_error(ours[name], expected[name]) for name in ours}


def check(layer: Layer, dtype: torch.dtype, device="cpu", tolerance: float | None = None, **options) -> None:
    """Assert that output and all gradients are within the tolerance."""
    tolerance = tolerance or TOLERANCE[dtype]
    wrong = {name: error for name, error in errors(layer, dtype, device, **options).items() if error > tolerance}
    assert not wrong, f"{layer}: errors above {tolerance:g}: {wrong}"


@dataclasses.dataclass(frozen=True)
class Dynamic:
    """Sizes of a dense layer split into experts; a token executes each with probability ``share``."""

    tokens: int = 40
    d_model: int = 24
    size: int = 6
    experts: int = 8
    share: float = 0.3
    activation: str = "relu"

    def values(self, device="cpu") -> list[torch.Tensor]:
        """x, w1, b1, w2, b2 in double precision, scaled so that outputs are about 1."""
        generator = torch.Generator().manual_seed(self.tokens + self.size)
        n, d, f = self.tokens, self.d_model, self.size * self.experts
        rows = factors(self.activation) * f
        scales = 1, d**-0.5, 1, f**-0.5, 1
        shapes = (n, d), (rows, d), (rows,), (f, d), (d,)
        sampled = [torch.randn(shape, generator=generator) * scale for shape, scale in zip(shapes, scales, strict=True)]
        return [value.double().to(device) for value in sampled]

    def mask(self, device="cpu") -> torch.Tensor:
        """[N, n]."""
        generator = torch.Generator().manual_seed(self.tokens * self.experts)
        return (torch.rand(self.tokens, self.experts, generator=generator) < self.share).to(device)


DYNAMIC = {
    "size 1": Dynamic(size=1, experts=48),
    "size 6": Dynamic(size=6, experts=11),
    "size 16": Dynamic(size=16, experts=4),
    "size 40": Dynamic(size=40, experts=2),
    "one expert": Dynamic(size=33, experts=1, share=0.5),
    "odd width": Dynamic(d_model=37, size=5),
    "wide": Dynamic(d_model=64, size=8),
    "one token": Dynamic(tokens=1),
    "all": Dynamic(share=1.0),
    "none": Dynamic(share=0.0),
    "few": Dynamic(share=0.02),
    "GELU": Dynamic(activation="gelu"),
    "tanh GELU": Dynamic(activation="gelu_tanh"),
    "SiLU": Dynamic(activation="silu"),
    "gated SiLU": Dynamic(activation="swiglu"),
    "gated SiLU, odd width": Dynamic(activation="swiglu", d_model=37, size=5, experts=7),
}


def dynamic_error(layer: Dynamic, dtype: torch.dtype, device="cpu", oracle=dynamic_ffn_reference) -> float:
    """Normalised error of the kernel's output against the oracle in double precision, on the same inputs."""
    values, mask = [value.to(dtype) for value in layer.values(device)], layer.mask(device)
    with poisoned():
        y = dynamic_kernels.forward(*values, mask, function_of(layer.activation))
    return normalised_error(y, oracle(*(value.double() for value in values), mask, activation=layer.activation))


@dataclasses.dataclass(frozen=True)
class Threshold:
    """Sizes of a layer of which a token runs about ``share`` of the neurons."""

    tokens: int = 21
    d_model: int = 24
    neurons: int = 70
    share: float = 0.4
    score: str = "product"
    activation: str = "swiglu"

    def values(self, device="cpu") -> list[torch.Tensor]:
        """x, w1, b1, w2, b2 and the limits, in double precision, scaled so that outputs are about 1."""
        layer = Dynamic(self.tokens, self.d_model, self.neurons, 1, activation=self.activation).values(device)
        return [*layer, self.limits(layer)]

    def limits(self, layer: list[torch.Tensor]) -> torch.Tensor:
        """[F].  Of each neuron the middle of the two values, as far apart as there are near the share."""
        compared = self.compared(layer).sort(dim=0).values  # [N, F]
        middle = round((1 - self.share) * (self.tokens - 1))
        window = range(max(0, middle - 2), min(self.tokens - 1, middle + 3))
        gaps = torch.stack([compared[i + 1] - compared[i] for i in window])
        chosen = gaps.argmax(dim=0) + window.start
        neurons = torch.arange(self.neurons, device=compared.device)
        return (compared[chosen, neurons] + compared[chosen + 1, neurons]) / 2

    def compared(self, layer: list[torch.Tensor]) -> torch.Tensor:
        """|act(gate)| or |h| of every token and neuron, [N, F]."""
        x, w1, b1, *_ = layer
        z = F.linear(x, w1, b1)
        if self.score == "gate":
            return activate(z[:, : self.neurons].clone(), function_of(self.activation)).abs()
        return activate(z, self.activation).abs()


THRESHOLD = {
    **{f"{score}, {name}": Threshold(score=score, activation=name)
       for score in ("gate", "product") for name in ("relu", "gelu", "gelu_tanh", "silu", "swiglu")},
    "few run": Threshold(share=0.1, score="gate"),
    "odd width": Threshold(d_model=37, neurons=45),
    "one piece": Threshold(neurons=5, score="gate"),
    "wide": Threshold(tokens=3, d_model=200, neurons=33),
    "many tokens": Threshold(tokens=50, score="gate"),
}  # fmt: skip


def threshold_error(layer: Threshold, dtype: torch.dtype, device="cpu", oracle=neuron_threshold_reference) -> float:
    """Normalised error of the kernel's output against the oracle in double precision, on the same inputs.

    Infinite where other numbers of neurons run.
    """
    values = [value.to(dtype) for value in layer.values(device)]
    values[-1] = layer.limits([value.double() for value in values[:-1]]).float()
    with poisoned():
        y, counts = threshold_kernels.forward(*values, layer.score == "gate", function_of(layer.activation))
    expected, counted = oracle(*(v.double() for v in values), score=layer.score, activation=layer.activation)
    return normalised_error(y, expected) if torch.equal(counts, counted) else math.inf


@contextlib.contextmanager
def poisoned():
    """New memory holds NaN, or -1 in integers, so that results from unwritten memory are wrong."""

    def filled(make):
        def made(*args, **kwargs):
            tensor = make(*args, **kwargs)
            return tensor.fill_(math.nan if tensor.is_floating_point() else -1)

        return made

    with (
        mock.patch.object(torch, "empty", filled(torch.empty)),
        mock.patch.object(torch, "empty_like", filled(torch.empty_like)),
        mock.patch.object(torch.Tensor, "new_empty", filled(torch.Tensor.new_empty)),
    ):
        yield
