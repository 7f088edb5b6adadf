"""Feed-forward layers side by side: dense, eight times as wide, and mixtures of experts by every backend.

A mixture is timed whole: router, choice of experts, plan and experts.  The tokens' first numbers are their logits,
which gives every routing by the same code.

Letters in shapes: N tokens, D model width, E experts, I neurons of an expert.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from planer.kernels.expert_ffn import expert_ffn
from planer.kernels.routing import route
from planer.latency.routings import zipf_shares

ROUTINGS = ("balanced", "zipf", "half", "one_hot")


@dataclass(frozen=True)
class Sizes:
    """What all layers of a comparison share."""

    d_model: int = 512
    d_inner: int = 2048
    experts: int = 8

    def flops(self, tokens: int, k: int) -> float:
        """Useful ones of a forward pass: two products of every pair."""
        return 4.0 * tokens * k * self.d_model * self.d_inner


def logits(tokens: int, experts: int, k: int, routing: str, device: torch.device) -> Tensor:
    """[N, E].  balanced: all experts get the same; zipf: as ``zipf_shares``; half: the other half gets nothing;
    one_hot: all tokens want the same experts."""
    generator = torch.Generator().manual_seed(tokens + k)
    if routing == "balanced":
        rank = (torch.arange(experts) - torch.randperm(tokens, generator=generator)[:, None]) % experts
        drawn = -rank.float()
    else:
        # Adding Gumbel noise to log shares and taking the k largest draws k experts without replacement.
        drawn = -torch.rand(tokens, experts, generator=generator).log().neg().log()
        if routing == "zipf":
            drawn += zipf_shares(experts).log()
        if routing == "half":
            drawn[:, experts // 2 :] -= 100
        if routing == "one_hot":
            drawn = -torch.arange(experts).float().expand(tokens, experts)
    return drawn.float().clamp(-8, 8).to(device)


@dataclass(frozen=True)
class Case:
    """One input of a mixture of experts."""

    x: Tensor
    gate: Tensor
    weights: tuple[Tensor, ...]
    k: int

    def mixture(self, backend: str) -> Callable[[], Tensor]:
        def call() -> Tensor:
            pairs, _, plan = route(self.x, self.gate, self.k, probabilities=False)
            return expert_ffn(self.x, *self.weights, pairs, backend=backend, plan=plan)

        return call


def case(sizes: Sizes, tokens: int, k: int, routing: str, dtype: torch.dtype, device: torch.device) -> Case:
    """Random numbers, and a router that reads the logits off the tokens."""
    generator = torch.Generator().manual_seed(0)
    d, i, e = sizes.d_model, sizes.d_inner, sizes.experts

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=generator) * scale).to(device, dtype).requires_grad_()

    x = torch.randn(tokens, d, generator=generator).to(device)
    x[:, :e] = logits(tokens, e, k, routing, device)
    weights = draw(e, i, d, scale=d**-0.5), draw(e, i), draw(e, d, i, scale=i**-0.5), draw(e, d)
    return Case(x.to(dtype).requires_grad_(), torch.eye(e, d, device=device, dtype=dtype).requires_grad_(), weights, k)


def providers(sizes: Sizes, mixture: Case, backends: tuple[str, ...]) -> Iterator[tuple[str, Callable, tuple]]:
    """Name, forward and what it has gradients for, of everything that computes such a layer."""
    x, (w1, b1, w2, b2) = mixture.x, mixture.weights

    def dense(w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        return F.linear(F.linear(x, w1, b1).relu_(), w2, b2)

    one = tuple(w[0].detach().clone().requires_grad_() for w in mixture.weights)
    yield "dense", functools.partial(dense, *one), (x, *one)
    wide = w1.flatten(0, 1), b1.flatten(), w2.transpose(0, 1).flatten(1), b2.sum(0)
    wide = tuple(w.detach().clone().requires_grad_() for w in wide)
    yield "dense_x8", functools.partial(dense, *wide), (x, *wide)
    for backend in backends:
        yield backend, mixture.mixture(backend), (x, mixture.gate, *mixture.weights)
    yield "transformers", transformers_mixture(mixture), (x, mixture.gate, *mixture.weights)


def transformers_mixture(mixture: Case) -> Callable[[], Tensor]:
    """The experts of Hugging Face's transformers, by PyTorch's grouped products, with our router and activation."""

    def call() -> Tensor:
        from transformers.integrations.moe import grouped_mm_experts_forward

        pairs, _, _ = route(mixture.x, mixture.gate, mixture.k, probabilities=False)
        index, gate = (t.view(-1, mixture.k) for t in (pairs.expert, pairs.gate.to(mixture.x.dtype)))
        return grouped_mm_experts_forward(experts, mixture.x, index, gate)

    class Experts(torch.nn.Module):
        has_gate, has_bias, is_transposed, num_experts = True, True, False, len(mixture.weights[0])

        def _apply_gate(self, hidden: Tensor) -> Tensor:
            return F.relu(hidden)

    experts = Experts()
    names = "gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias"
    for name, weight in zip(names, mixture.weights, strict=True):
        setattr(experts, name, weight)
    return call


def forward_backward(forward: Callable[[], Tensor], leaves: tuple[Tensor, ...], dy: Tensor) -> Callable[[], tuple]:
    """Output and the gradients of all leaves."""

    def call() -> tuple:
        y = forward()
        return y, *torch.autograd.grad(y, leaves, dy)

    return call
