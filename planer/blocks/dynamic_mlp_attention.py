"""Relative attention whose projections are MLPs split into experts."""

from __future__ import annotations

from torch import Tensor

from planer import specs
from planer.blocks.block import Aux, Wants
from planer.blocks.dynamic_moe import DynamicMoE
from planer.blocks.mlp_attention import MlpAttention, MlpAttentionBlock


class DynamicMlpAttention(MlpAttention):
    """Each MLP runs those of its experts that its own router selects.

    Raises ValueError where the heads together are not as wide as the network.
    """

    def _mlp(self, spec: specs.DynamicMlpAttention, d_in: int, d_out: int, dropout: float) -> DynamicMoE:
        if d_in != d_out:
            raise ValueError(f"the heads are {spec.width} wide; experts need the width of the network")
        return DynamicMoE(spec.mlp, d_in, dropout)

    def _run(self, mlp: DynamicMoE, x: Tensor, wants: Wants) -> tuple[Tensor, Aux]:
        return mlp(x, wants)


class DynamicMlpAttentionBlock(MlpAttentionBlock):
    """The attention with its residual and LayerNorm."""

    compiles = False  # as DynamicMoEBlock


def build(spec: specs.DynamicMlpAttention, shared: specs.Architecture) -> DynamicMlpAttentionBlock:
    """The block that a specification describes."""
    layer = DynamicMlpAttention(spec, shared.d_model, shared.dropout, shared.attention_dropout)
    return DynamicMlpAttentionBlock(layer, shared.d_model, shared.norm)
