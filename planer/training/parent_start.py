"""Weights taken from a trained network, the parent: a start for any block at any position.

Embedding, head and final LayerNorm are the parent's.  Every block gets the LayerNorm that the parent has at the
block's position, and its other weights from the parent's nearest block of the kind that it is made from; of two equally
near blocks, from the earlier one.

    attention with h heads   the nearest attention block's h heads whose removal raises the block's error most
    feed-forward             the nearest feed-forward layer
    mixture of experts       in every expert the nearest feed-forward layer (sparse upcycling, arXiv 2212.05055); for
                             top-1, whose output is weighted by the router's probability, w2 and b2 are divided by that
                             probability's mean

A block that is the parent's at its own place is copied exactly.  Where a block is wider than its source, heads or
neurons are repeated, and their outputs divided by how often.  Routers, and blocks of a kind that the parent lacks, keep
their random weights.

Letters in shapes: N tokens, D model width, H heads of width Dh, I hidden neurons, E experts.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planer.blocks.attention import Attention
from planer.blocks.block import AttentionBlock, Block
from planer.blocks.feed_forward import FeedForward
from planer.blocks.moe import Experts, MoE
from planer.config import TrainingConfig
from planer.data.stream import StreamBatches
from planer.models import LanguageModel


class Parent:
    """A trained network, and what its blocks do with one batch of the training text."""

    def __init__(self, model: LanguageModel, tokens: np.ndarray, shape: TrainingConfig):
        """model: on its device; it is put into evaluation.  tokens: the training text [n], of which the second segment
        of every stream is looked at, with the first one as memory.  shape: has batch, tgt_len and mem_len."""
        self.model = model.eval().requires_grad_(False)
        self.inputs: list[Tensor] = []
        """Of every block, [N, D]."""
        self.head_errors: dict[int, Tensor] = {}
        """By the position of an attention block: the block's relative squared error without each head, [H]."""
        self._observe(StreamBatches(tokens, shape.batch, shape.tgt_len), shape.mem_len)

    @torch.no_grad()
    def _observe(self, batches: StreamBatches, mem_len: int) -> None:
        model, device = self.model, next(self.model.parameters()).device
        before, now = (model.embed(batches.batch_at(step)[0].to(device)) for step in (0, 1))
        for position, block in enumerate(model.blocks):
            place = slice(position, position + 1)
            after, memory = model.run_blocks(before, None, mem_len=mem_len, places=place)
            output, _ = model.run_blocks(now, memory, mem_len=mem_len, places=place)
            if isinstance(block, AttentionBlock):
                self.head_errors[position] = torch.stack(
                    [
                        (model.run_blocks(now, memory, mem_len=mem_len, places=place)[0] - output).square().mean()
                        / output.square().mean()
                        for _ in without_each_head(block.sublayer)
                    ]
                )
            self.inputs.append(now.flatten(0, -2))
            before, now = after, output

    def nearest(self, position: int, kind: type[nn.Module]) -> int | None:
        """Position of the nearest block with such a sublayer, the earlier of two; None without any."""
        found = [i for i, block in enumerate(self.model.blocks) if isinstance(getattr(block, "sublayer", None), kind)]
        return min(found, key=lambda i: abs(i - position), default=None)


def without_each_head(attention: Attention):
    """Yield once per head, while that head's output is off."""
    weight = attention.output.weight
    for head in range(attention.num_heads):
        columns = slice(head * attention.d_head, (head + 1) * attention.d_head)
        kept = weight[:, columns].clone()
        weight[:, columns] = 0
        try:
            yield head
        finally:
            weight[:, columns] = kept


@torch.no_grad()
def start_from_parent(
    model: LanguageModel, parent: Parent, expert_noise: float = 0.0, generator: torch.Generator | None = None
) -> None:
    """Overwrite the weights of an initialised model.

    expert_noise: standard deviation of what is added to the copies of a mixture's experts, over that of the copied
    weight; from the generator.
    """
    copy_stem(model, parent)
    for position, block in enumerate(model.blocks):
        start_block(block, position, parent)
        layer = getattr(block, "sublayer", None)
        if expert_noise and isinstance(layer, MoE) and not _same_mixture(layer, _sublayer_at(position, parent)):
            add_noise(block.sublayer.experts, expert_noise, generator)


@torch.no_grad()
def copy_stem(model: LanguageModel, parent: Parent) -> None:
    """Copy what surrounds the blocks: embedding, head and final LayerNorm."""
    names = ("embedding.", "head.", "final_norm.")
    stem = {name: tensor for name, tensor in parent.model.state_dict().items() if name.startswith(names)}
    model.load_state_dict(stem, strict=False)


@torch.no_grad()
def start_block(block: nn.Module, position: int, parent: Parent, by_importance: bool = False) -> None:
    """Overwrite the weights of one block that stands at this position.

    by_importance: the heads of an attention block stand in falling order of importance instead of the parent's order,
    for a supernet whose options are the first heads of one block.
    """
    if not isinstance(block, Block):  # skip has no weights
        return
    start_norm(block, position, parent)
    layer = block.sublayer
    if isinstance(layer, Attention):
        _start_attention(layer, position, parent, by_importance)
    elif isinstance(layer, FeedForward):
        if (source := _feed_forward(position, parent)) is not None:
            w1, b1, w2, b2 = _widened(source, layer.w1.out_features)
            _set(layer.w1.weight, w1), _set(layer.w1.bias, b1), _set(layer.w2.weight, w2), _set(layer.w2.bias, b2)
    elif isinstance(layer, MoE):
        _start_mixture(block, position, parent)


@torch.no_grad()
def start_norm(block: Block, position: int, parent: Parent) -> None:
    """Copy the LayerNorm that the parent has at this position, or nearest to it."""
    nearest = parent.nearest(position, nn.Module)
    if nearest is not None:
        block.norm.load_state_dict(parent.model.blocks[nearest].norm.state_dict())


def _start_attention(layer: Attention, position: int, parent: Parent, by_importance: bool) -> None:
    nearest = parent.nearest(position, Attention)
    if nearest is None or parent.model.blocks[nearest].sublayer.d_head != layer.d_head:
        return
    source, errors = parent.model.blocks[nearest].sublayer, parent.head_errors[nearest]
    ranked = errors.sort(descending=True, stable=True).indices[: layer.num_heads]
    heads, share = _repeated(ranked if by_importance else ranked.sort().values, layer.num_heads)

    def taken(rows: Tensor) -> Tensor:
        """The heads of rows [H * Dh, ...]."""
        return rows.unflatten(0, (source.num_heads, source.d_head))[heads].flatten(0, 1)

    _set(layer.qkv.weight, torch.cat([taken(part) for part in source.qkv.weight.chunk(3)]))
    _set(layer.positions.weight, taken(source.positions.weight))
    outputs = source.output.weight.T.unflatten(0, (source.num_heads, source.d_head))[heads] * share[:, None, None]
    _set(layer.output.weight, outputs.flatten(0, 1).T)
    _set(layer.u, source.u[heads]), _set(layer.v, source.v[heads])


def _start_mixture(block: Block, position: int, parent: Parent) -> None:
    layer, source = block.sublayer, _feed_forward(position, parent)
    if _same_mixture(layer, own := _sublayer_at(position, parent)):
        layer.load_state_dict(own.state_dict())
        return
    if source is None:
        return
    experts, scale = layer.experts, 1.0
    if layer.top_k == 1:
        tokens = parent.inputs[min(position, len(parent.inputs) - 1)]
        logits = F.linear(block.norm(tokens) if block.pre_norm else tokens, layer.gate)
        scale = 1 / logits.softmax(-1).amax(-1).mean()
    w1, b1, w2, b2 = _widened(source, experts.w1.shape[1])
    for parameter, copied in ((experts.w1, w1), (experts.b1, b1), (experts.w2, w2 * scale), (experts.b2, b2 * scale)):
        _set(parameter, copied.expand_as(parameter))


def _sublayer_at(position: int, parent: Parent) -> nn.Module | None:
    blocks = parent.model.blocks
    return getattr(blocks[position], "sublayer", None) if position < len(blocks) else None


def _same_mixture(layer: MoE, other: nn.Module | None) -> bool:
    """Whether the other layer is a mixture of as many experts of the same size, of which a token takes as many."""
    if not isinstance(other, MoE) or other.top_k != layer.top_k:
        return False
    return other.experts.w1.shape == layer.experts.w1.shape


def add_noise(experts: Experts, share: float, generator: torch.Generator | None) -> None:
    """Add to every weight of every expert noise with this share of the weight's standard deviation."""
    for parameter in (experts.w1, experts.w2):
        noise = torch.empty(parameter.shape).normal_(generator=generator)
        parameter.add_(noise.to(parameter) * share * parameter.std())


def _feed_forward(position: int, parent: Parent) -> FeedForward | None:
    nearest = parent.nearest(position, FeedForward)
    return None if nearest is None else parent.model.blocks[nearest].sublayer


def _widened(source: FeedForward, neurons: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """w1 [I, D], b1 [I], w2 [D, I] and b2 [D] of a layer with this number of neurons that computes the same."""
    chosen, share = _repeated(torch.arange(source.w1.out_features, device=source.w1.weight.device), neurons)
    return source.w1.weight[chosen], source.w1.bias[chosen], source.w2.weight[:, chosen] * share, source.w2.bias


def _repeated(parts: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """So many parts, from the first again after the last, and one over how often each part occurs among them."""
    numbers = torch.arange(count, device=parts.device) % len(parts)
    return parts[numbers], 1 / numbers.bincount()[numbers]


def _set(parameter: Tensor, value: Tensor) -> None:
    if parameter.shape != value.shape:
        raise ValueError(f"a weight of shape {tuple(value.shape)} does not fit {tuple(parameter.shape)}")
    parameter.copy_(value)
