"""Relative attention whose projections are multiplicative layers (arXiv 2111.12763; MultiplicativeCausalAttention of
trax, trax/layers/research/sparsity.py).

The papers' attention is not relative.  Here keys of positions are projected by a multiplicative layer too, without the
bias, which the softmax would cancel.

Letters in shapes: B sequences, T tokens, M remembered positions, K = M + T keys, H heads of width Dh, D model width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from planer.blocks.attention import MemoryBlock, RelativeAttention, last, version_of, with_cached
from planer.blocks.block import Segment, Source, set_weight
from planer.blocks.multiplicative import Multiplicative
from planer.specs import Architecture
from planer.specs import sparse_attention as specs


class SparseAttention(RelativeAttention):
    """All heads, with a bias on every projection but that of the positions."""

    def __init__(self, spec: specs.SparseAttention, shared: Architecture):
        super().__init__(spec, shared.dropout, shared.attention_dropout)
        self.positions = Multiplicative(shared.d_model, self.width, spec.modules, bias=False)
        self._make_projections(spec, shared.d_model)

    def _make_projections(self, spec: specs.SparseAttention, d_model: int) -> None:
        self.queries, self.keys, self.values = (Multiplicative(d_model, self.width, spec.modules) for _ in range(3))
        self.output = Multiplicative(self.width, d_model, spec.modules)

    def _project(self, x: Tensor, segment: Segment, memory) -> tuple[Tensor, ...]:
        seen = torch.cat((last(memory, segment.memory_len), x), dim=1) if torch.is_tensor(memory) else x
        (queries,) = self._heads(self.queries(x), 1)
        (keys,), (values,) = (self._heads(layer(seen), 1) for layer in (self.keys, self.values))
        return queries, *with_cached(keys, values, None if torch.is_tensor(memory) else memory)

    def _position_version(self) -> tuple:
        return tuple(map(version_of, self.positions.parameters()))


class SparseAttentionBlock(MemoryBlock):
    """The layer with its residual and LayerNorm."""

    def start(self, source: Source, by_importance: bool = False, noise: Callable[[Tensor], None] | None = None) -> None:
        """Take u and v of the parent's nearest dense attention with these heads, and the multiplicative layers nearest
        to its projections.

        The output is another one: of a projection of S modules, one rank in S or less is left of every input.  The
        parent's own sparse attention is copied as ``Source.copied`` says.
        """
        layer = self.sublayer
        if source.copied is not None:
            layer.load_state_dict(source.copied.sublayer.state_dict())
        elif source.nearest is not None and source.nearest.sublayer.u.shape == layer.u.shape:
            other = source.nearest.sublayer
            set_weight(layer.u, other.u)
            set_weight(layer.v, other.v)
            dense = (*other.qkv.weight.chunk(3), other.output.weight, other.positions.weight)
            projections = layer.queries, layer.keys, layer.values, layer.output, layer.positions
            for projection, weight in zip(projections, dense, strict=True):
                projection.approximate(weight)


def build(spec: specs.SparseAttention, shared: Architecture) -> SparseAttentionBlock:
    return SparseAttentionBlock(SparseAttention(spec, shared), shared.d_model, shared.norm)
