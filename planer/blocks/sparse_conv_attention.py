"""Relative attention on convolutions of one multiplicative layer (arXiv 2111.12763; MultiplicativeConvCausalAttention
of trax, trax/layers/research/sparsity.py).

    y = multiplicative(x), an image of positions and modules with M channels
    queries, keys = convolutions of y over 3 positions and 3 modules,  values = a convolution over 3 positions

A position sees itself and the two before it.  Convolutions share their weights over positions and modules.  Heads are
slices of the modules side by side, and there is no output projection.

Convolutions start normal with variance 1 / M as in trax, which does not count their taps: outputs of a 3 x 3
convolution have 9 times the variance of its inputs.

Letters in shapes: B sequences, T tokens, L positions, S modules, M channels of a module, W = S M.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planer.blocks.attention import MemoryBlock, last, with_cached
from planer.blocks.block import Segment
from planer.blocks.multiplicative import Multiplicative
from planer.blocks.sparse_attention import SparseAttention
from planer.initial import normal
from planer.specs import Architecture
from planer.specs import sparse_conv_attention as specs
from planer.specs.sparse_conv_attention import LENGTH, LOOKBACK, WIDTH


class Convolution(nn.Conv2d):
    """Over 3 positions, the last of which is the output's own, and an odd number of modules."""

    def __init__(self, channels: int, modules_seen: int):
        super().__init__(channels, channels, (LENGTH, modules_seen), padding=(0, modules_seen // 2))
        self.initial = {"weight": normal(1 / math.sqrt(channels))}

    def forward(self, y: Tensor, count: int) -> Tensor:
        """The last count positions [B, count, W] of y [B, L, W]; zeros stand before the first one."""
        y = last(y, count + LOOKBACK)
        image = y.unflatten(-1, (-1, self.in_channels)).permute(0, 3, 1, 2)
        image = F.pad(image, (0, 0, count + LOOKBACK - y.shape[1], 0))
        return super().forward(image).permute(0, 2, 3, 1).flatten(2)


class SparseConvAttention(SparseAttention):
    """Remembers the last two positions of y beside keys and values."""

    def _make_projections(self, spec: specs.SparseConvAttention, d_model: int) -> None:
        channels = self.width // spec.modules
        self.projection = Multiplicative(d_model, self.width, spec.modules)
        self.queries, self.keys = Convolution(channels, WIDTH), Convolution(channels, WIDTH)
        self.values = Convolution(channels, 1)
        self.output = nn.Identity()

    def _project(self, x: Tensor, segment: Segment, memory) -> tuple[Tensor, ...]:
        length = projected = x.shape[1]
        if torch.is_tensor(memory):
            projected += segment.memory_len
            y = self.projection(torch.cat((last(memory, segment.memory_len + LOOKBACK), x), dim=1))
            memory = None
        else:
            y = self.projection(x)
            y = y if memory is None else torch.cat((memory[2], y), dim=1)
        (queries,) = self._heads(self.queries(y, length), 1)
        (keys,), (values,) = (self._heads(layer(y, projected), 1) for layer in (self.keys, self.values))
        return queries, *with_cached(keys, values, memory), last(y, LOOKBACK).detach()


class SparseConvAttentionBlock(MemoryBlock):
    """The layer with its residual and LayerNorm."""

    lookback = LOOKBACK


def build(spec: specs.SparseConvAttention, shared: Architecture) -> SparseConvAttentionBlock:
    return SparseConvAttentionBlock(SparseConvAttention(spec, shared), shared.d_model, shared.norm)
