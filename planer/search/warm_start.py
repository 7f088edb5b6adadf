"""Weights of trained networks that retraining starts from, instead of random ones.

A searched network can inherit every weight from the supernet that it was chosen from.  Any network can be upcycled
from the trained baseline: mixtures of experts get copies of feed-forward layers (sparse upcycling, arXiv 2212.05055),
and all else what the baseline has of the same shape.
"""

from __future__ import annotations

import torch
from torch import Tensor

from planer.architecture import Architecture, BlockSpec, FeedForward, MoE
from planer.blocks.block import AttentionBlock, Block, SkipBlock
from planer.files import UserError
from planer.model import LanguageModel
from planer.search.supernet import FirstHeads, Supernet


def inherited(architecture: Architecture, supernet: Supernet) -> dict[str, Tensor]:
    """Every weight of the architecture, by its name there, as the supernet trained it.

    Raises UserError when a block is not among the supernet's options or the lengths differ.
    """
    if len(architecture.blocks) != len(supernet.blocks) or not set(architecture.blocks) <= set(supernet.specs):
        raise UserError(f"{architecture.pattern} is no network of this experiment's supernet; choose it anew")
    weights = _stem(supernet)
    for position, (spec, block) in enumerate(zip(architecture.blocks, supernet.blocks, strict=True)):
        weights |= _trained(block.options[supernet.specs.index(spec)], f"blocks.{position}.")
    return weights


def upcycled(architecture: Architecture, baseline: LanguageModel) -> dict[str, Tensor]:
    """Weights that the architecture can take from a trained baseline of the same width, by their names there.

    Embedding, output bias and final LayerNorm are copied.  A mixture of experts gets, in every expert, the weights of
    the baseline's nearest feed-forward layer with as many neurons, and its LayerNorm; every other block those of the
    nearest block of the same kind and shape.  Of two equally near, the earlier one.  What is missing in the result
    stays random: attention with fewer heads, wider feed-forward layers, and all gates.  A gate of zeros would send
    every token to the same expert, and equal experts would stay equal; a random one gives each its own tokens.

    The gates weight what the experts give: before training, a top-2 block computes what the copied layer did (its
    gates sum to 1), a top-1 block the same times its gate's probability, about 1 over the number of experts.
    """
    weights = _stem(baseline)
    for position, spec in enumerate(architecture.blocks):
        prefix = f"blocks.{position}."
        if isinstance(spec, MoE):
            source = _nearest(baseline, position, FeedForward(spec.d_inner))
            weights |= _experts(source, spec.num_experts, prefix) if source else {}
        else:
            source = _nearest(baseline, position, spec)
            weights |= source.state_dict(prefix=prefix) if source else {}
    return {name: tensor.clone() for name, tensor in weights.items()}  # one block may lend to several


def _trained(option: Block | SkipBlock, prefix: str) -> dict[str, Tensor]:
    """The state of a supernet's option as that of a block of its own."""
    if isinstance(option, AttentionBlock) and isinstance(option.sublayer, FirstHeads):
        heads = {f"{prefix}sublayer.{name}": tensor for name, tensor in option.sublayer.weights().items()}
        return heads | option.norm.state_dict(prefix=f"{prefix}norm.")
    return option.state_dict(prefix=prefix)


def _stem(model: LanguageModel) -> dict[str, Tensor]:
    """What surrounds the blocks."""
    names = ("embedding.", "output_bias", "final_norm.")
    return {name: tensor for name, tensor in model.state_dict().items() if name.startswith(names)}


def _nearest(model: LanguageModel, position: int, spec: BlockSpec) -> Block | None:
    """The block of this specification that is nearest to the position; None without any."""
    same = [i for i, other in enumerate(model.architecture.blocks) if other == spec]
    return model.blocks[min(same, key=lambda i: abs(i - position))] if same else None


def _experts(source: Block, num_experts: int, prefix: str) -> dict[str, Tensor]:
    """The experts and the LayerNorm of a mixture whose experts all equal the feed-forward layer of source."""
    layer = source.sublayer
    parts = {"w1": layer.w1.weight, "b1": layer.w1.bias, "w2": layer.w2.weight, "b2": layer.w2.bias}
    experts = {f"{prefix}sublayer.experts.{n}": torch.stack([part.detach()] * num_experts) for n, part in parts.items()}
    return experts | source.norm.state_dict(prefix=f"{prefix}norm.")
