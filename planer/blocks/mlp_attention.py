"""Relative attention whose projections are MLPs.

Letters in shapes: B sequences, T tokens, M remembered positions, D model width, W width of the concatenated heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from planer import specs
from planer.blocks.attention import MemoryBlock, RelativeAttention, last, with_cached
from planer.blocks.block import Segment
from planer.blocks.projection import ProjectionLayer


class MlpAttention(RelativeAttention):
    """MLPs map x [B, T, D] to queries, keys and values [B, T, W], and the mixture of values to the output [B, T, D]."""

    def __init__(self, spec: specs.MlpAttention, d_model: int, dropout: float, attention_dropout: float):
        super().__init__(spec, dropout, attention_dropout)
        sizes = {"query": (d_model, self.width), "key": (d_model, self.width), "value": (d_model, self.width)}
        for name, (d_in, d_out) in (sizes | {"output": (self.width, d_model)}).items():
            self.add_module(name, ProjectionLayer(d_in, d_out, spec.neurons, nn.ReLU(), dropout))
        self.positions = nn.Linear(d_model, self.width, bias=False)

    def _project(self, x: Tensor, segment: Segment, memory) -> tuple[Tensor, ...]:
        recomputed = torch.is_tensor(memory)
        seen = torch.cat((last(memory, segment.memory_len), x), dim=1) if recomputed else x
        queries, keys, values = (
            self._heads(layer(of), 1)[0] for layer, of in ((self.query, x), (self.key, seen), (self.value, seen))
        )
        return queries, *((keys, values) if recomputed else with_cached(keys, values, memory))


def build(spec: specs.MlpAttention, shared: specs.Architecture) -> MemoryBlock:
    layer = MlpAttention(spec, shared.d_model, shared.dropout, shared.attention_dropout)
    return MemoryBlock(layer, shared.d_model, shared.norm)
