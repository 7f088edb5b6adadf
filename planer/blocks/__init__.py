"""Blocks of a network, one kind a file, and the one function that builds them from specifications."""

from __future__ import annotations

from torch import nn

from planer import architecture
from planer.architecture import Architecture, BlockSpec
from planer.blocks.attention import Attention
from planer.blocks.block import AttentionBlock, Block, SkipBlock
from planer.blocks.dynamic_moe import DynamicMoE
from planer.blocks.feed_forward import FeedForward
from planer.blocks.moe import Experts, MoE


def build_block(spec: BlockSpec, arch: Architecture, experts: Experts | None = None) -> nn.Module:
    """Make the block that spec describes, with the width, norm and dropout of arch.

    experts: weights for a mixture of experts to share with another one instead of having its own.
    """
    d_model, dropout = arch.d_model, arch.dropout
    match spec:
        case architecture.Skip():
            return SkipBlock()
        case architecture.Attention():
            return AttentionBlock(Attention(spec, d_model, dropout, arch.attention_dropout), d_model, arch.norm)
        case architecture.FeedForward():
            return Block(FeedForward(spec, d_model, dropout), d_model, arch.norm)
        case architecture.MoE():
            return Block(MoE(spec, d_model, arch.moe_dropout, experts), d_model, arch.norm)
        case architecture.DynamicMoE():
            return Block(DynamicMoE(spec, d_model, dropout), d_model, arch.norm)
    raise ValueError(f"no block is known for {spec!r}")
