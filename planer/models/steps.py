"""How one token goes through each kind of block, by the operators of planer/kernels/sparse_decode.

Matrices may be stored in bfloat16 or int8.  Routers and controllers stay in float32: rounded ones would pick other
experts and neurons.

Letters in shapes: B sequences, M remembered positions, C cached positions, H heads of width Dh, D model width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from planer.blocks.block import Block
from planer.kernels.sparse_decode import panels, rows
from planer.models.positions import PIECE
from planer.specs.sparse_conv_attention import LENGTH


class Step:
    """A position-wise block: ``step(x, None)`` is its output for x [B, D].

    Weights are laid out once, here.  They are those of the block where the layout is the same.
    """

    def __init__(self, operator: str, block: Block, *weights):
        self._operator = _operator(operator)
        norm = block.norm
        self._residual = norm.weight.detach(), norm.bias.detach(), norm.eps, block.pre_norm
        self._weights = weights

    def start(self, states: list, seen: Tensor, positions: Tensor, length: int) -> object:
        """The cache of new sequences.

        states: what the block remembers of their prompts (``planer.models.decoder.start``).
        seen: [B] int64, tokens before the next one.  positions: [L, D] sinusoids of the distances 0, 1, ...
        length: positions to cache, at most L.
        """
        return None

    def __call__(self, x: Tensor, cache) -> Tensor:
        return self._operator(x, *self._residual, *self._weights)


class DynamicStep(Step):
    """A dynamically executed layer at the threshold that it has when the token comes."""

    def __init__(self, block: Block, kind: str):
        self._layer = layer = block.sublayer
        super().__init__("feed_forward", block, *_neurons(layer.w1, layer.b1, layer.w2, layer.b2, kind))
        self._dynamic = _operator("dynamic")
        self._router = _detached(layer.router.v1, layer.router.v2) if layer.router else ()

    def __call__(self, x: Tensor, cache) -> Tensor:
        if self._layer.tau == 0.0:
            return super().__call__(x, cache)
        return self._dynamic(x, *self._residual, *self._router, *self._weights, self._layer.tau)


@dataclass
class Cache:
    """What an attention block remembers of its sequences: rings of keys and values [B, H, C, Dh]."""

    keys: Tensor
    values: Tensor
    seen: Tensor
    """[B] int64: tokens before the next one, which is written to place ``seen`` mod C."""
    positions: Tensor
    """Keys of the distances 0, 1, ...: [H, L, Dh]."""
    more: tuple[Tensor, ...] = ()


class AttentionStep(Step):
    """An attention block: ``step(x, cache)`` writes to the cache."""

    def __init__(self, operator: str, block: Block, *weights):
        super().__init__(operator, block, *weights)
        self._layer = block.sublayer
        self._position_keys: tuple[Tensor, Tensor] | None = None

    def start(self, states: list, seen: Tensor, positions: Tensor, length: int) -> Cache:
        """See Step.  A state: keys and values [b, H, M, Dh], M < length."""
        keys, values = (
            torch.cat([F.pad(state[part], (0, 0, 0, length - state[part].shape[2])) for state in states])
            for part in (0, 1)
        )
        return Cache(keys, values, seen.clone(), self._project(positions))

    def _project(self, positions: Tensor) -> Tensor:
        """[L, D] to [H, L, Dh], kept for the next sequences."""
        if self._position_keys is None or self._position_keys[0] is not positions:
            heads = self._layer.num_heads, self._layer.d_head
            keys = torch.cat([self._layer.positions(piece) for piece in positions.split(PIECE)])
            self._position_keys = positions, keys.unflatten(-1, heads).transpose(0, 1).contiguous()
        return self._position_keys[1]

    def __call__(self, x: Tensor, cache: Cache) -> Tensor:
        biases = self._layer.u, self._layer.v
        places = cache.positions, cache.keys, cache.values, cache.seen
        y = self._operator(x, *self._residual, *biases, *places, *cache.more, *self._weights)
        cache.seen += 1
        return y


class ConvAttentionStep(AttentionStep):
    """Its cache has the image of the last projections too: [B, 3, M, S + 2], with zeros beside the S modules."""

    def start(self, states: list, seen: Tensor, positions: Tensor, length: int) -> Cache:
        cache = super().start(states, seen, positions, length)
        channels = self._layer.queries.in_channels
        images = [state[2].unflatten(-1, (-1, channels)).transpose(-1, -2) for state in states]
        cache.more = (torch.cat([F.pad(image, (1, 1, 0, 0, LENGTH - image.shape[1], 0)) for image in images]),)
        return cache


def _operator(name: str) -> Callable[..., Tensor]:
    return getattr(torch.ops.planer_cpp, f"decode_{name}").default


def _detached(*weights: Tensor) -> list[Tensor]:
    return [weight.detach() for weight in weights]


def multiplicative_layer(scales: Tensor, bias: Tensor, shared: Tensor, kind: str) -> list[Tensor]:
    """A multiplicative layer as the operators take it."""
    return [scales.detach().t().contiguous(), bias.detach(), *panels(shared, kind)]


def _multiplicative(layer, kind: str) -> list[Tensor]:
    return multiplicative_layer(layer.scales, layer.bias, layer.shared, kind)


def _taps(convolution, kind: str) -> list[Tensor]:
    """Bias, and weights [M, M, 3, modules seen] as panels of [modules seen, 3 M, M]."""
    return [convolution.bias.detach(), *panels(convolution.weight.permute(3, 2, 1, 0).flatten(1, 2), kind)]


def _neurons(w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, kind: str) -> tuple:
    """w1 and w2: a row for each neuron."""
    return rows(w1, kind), b1.detach(), rows(w2, kind), b2.detach()


def _feed_forward(block: Block, kind: str) -> Step:
    w1, w2 = block.sublayer.w1, block.sublayer.w2
    return Step("feed_forward", block, *_neurons(w1.weight, w1.bias, w2.weight.t(), w2.bias, kind))


def _moe(block: Block, kind: str) -> Step:
    layer, experts = block.sublayer, block.sublayer.experts
    weights = _neurons(experts.w1, experts.b1, experts.w2.transpose(1, 2), experts.b2, kind)
    return Step("mixture", block, layer.gate.detach(), *weights, layer.top_k)


def _sparse_feed_forward(block: Block, kind: str) -> Step:
    layer, controller = block.sublayer, block.sublayer.controller
    chosen = controller.c1.detach(), *panels(controller.c2.t()), controller.bias.detach()
    weights = _neurons(layer.w1, layer.b1, layer.w2, layer.b2, kind)
    return Step("sparse_feed_forward", block, *chosen, *weights, layer.spec.block_size, layer.spec.weighted)


def _attention(block: Block, kind: str) -> Step:
    layer = block.sublayer
    return AttentionStep("attention", block, rows(layer.qkv.weight, kind), rows(layer.output.weight, kind))


def _sparse_attention(block: Block, kind: str) -> Step:
    layer = block.sublayer
    projections = layer.queries, layer.keys, layer.values, layer.output
    return AttentionStep("sparse_attention", block, [w for p in projections for w in _multiplicative(p, kind)])


def _sparse_conv_attention(block: Block, kind: str) -> Step:
    layer = block.sublayer
    taps = [weight for convolution in (layer.queries, layer.keys, layer.values) for weight in _taps(convolution, kind)]
    return ConvAttentionStep("sparse_conv_attention", block, _multiplicative(layer.projection, kind), taps)


STEPS: dict[str, Callable[[Block, str], Step]] = {
    "attention": _attention,
    "dynamic_moe": DynamicStep,
    "feed_forward": _feed_forward,
    "moe": _moe,
    "sparse_attention": _sparse_attention,
    "sparse_conv_attention": _sparse_conv_attention,
    "sparse_feed_forward": _sparse_feed_forward,
}
"""By the kind of a block's specification, from a block and what its weights are stored as.

A block of another kind runs its forward pass in PyTorch.
"""
