"""Relative attention whose projections are MLPs.

Letters in shapes: B sequences, T tokens, M remembered positions, D model width, W width of the concatenated heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from planer import specs
from planer.blocks.attention import MemoryBlock, RelativeAttention, last, with_cached
from planer.blocks.block import Aux, Segment, Wants
from planer.blocks.projection import ProjectionLayer
from planer.specs.mlp_attention import PROJECTIONS


class MlpAttention(RelativeAttention):
    """MLPs map x [B, T, D] to queries, keys and values [B, T, W], and the mixture of values to the output [B, T, D]."""

    def __init__(self, spec: specs.MlpAttention, d_model: int, dropout: float, attention_dropout: float):
        super().__init__(spec, dropout, attention_dropout)
        for name in PROJECTIONS:
            sizes = (self.width, d_model) if name == "output" else (d_model, self.width)
            self.add_module(name, self._mlp(spec, *sizes, dropout))
        self.positions = nn.Linear(d_model, self.width, bias=False)

    def _mlp(self, spec: specs.MlpAttention, d_in: int, d_out: int, dropout: float) -> nn.Module:
        return ProjectionLayer(d_in, d_out, spec.neurons, nn.ReLU(), dropout)

    def forward(
        self, x: Tensor, segment: Segment, memory: Tensor | tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...] | None, Aux]:
        """As of RelativeAttention, and further outputs of the MLPs on the segment's tokens."""
        recomputed, aux = torch.is_tensor(memory), {}

        def project(name: str, of: Tensor) -> Tensor:
            y, more = self._run(self.get_submodule(name), of, segment.wants)
            aux.update({f"{key}_{name}": last(one, x.shape[1]) if one.dim() else one for key, one in more.items()})
            return y

        seen = torch.cat((last(memory, segment.memory_len), x), dim=1) if recomputed else x
        projected = (project("query", x), project("key", seen), project("value", seen))
        queries, keys, values = (self._heads(one, 1)[0] for one in projected)
        keys, values = (keys, values) if recomputed else with_cached(keys, values, memory)
        mixed, state = self._mix(segment, queries, keys, values)
        return self.dropout(project("output", mixed)), state, aux

    def _run(self, mlp: nn.Module, x: Tensor, wants: Wants) -> tuple[Tensor, Aux]:
        """The result of an MLP, and its further outputs."""
        if "activations" not in wants:
            return mlp(x), {}
        y, hidden = mlp.with_hidden(x)
        return y, {"activations": hidden}


class MlpAttentionBlock(MemoryBlock):
    """The attention with its residual and LayerNorm."""

    def attend(self, x: Tensor, segment: Segment, state) -> tuple[Tensor, tuple[Tensor, ...] | None, Aux]:
        """See MemoryBlock."""
        return self.sublayer(x, segment, state)


def build(spec: specs.MlpAttention, shared: specs.Architecture) -> MlpAttentionBlock:
    layer = MlpAttention(spec, shared.d_model, shared.dropout, shared.attention_dropout)
    return MlpAttentionBlock(layer, shared.d_model, shared.norm)
