"""Initial weights from a trained network, the parent, for any block at any position.

Embedding, head and final LayerNorm are copied.  Every block gets the parent's LayerNorm at its position.  Its other
weights come from the parent's nearest block of the kind that it starts from; of two equally near blocks, from the
earlier one.  ``Block.start`` in planer/blocks takes them.  A sparse layer copies the parent's at the same position, or,
where the parent has no dense one, the nearest, if it is of the same size.  Routers, and blocks of a kind that the
parent lacks, keep their random weights.

Letters in shapes: N tokens, D model width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from planer.blocks.block import Block, Source
from planer.config import TrainingConfig
from planer.data.stream import StreamBatches
from planer.models import LanguageModel
from planer.specs import BlockSpec


class Parent:
    """A trained network, with inputs and importances of its blocks on one batch of the training text."""

    def __init__(self, model: LanguageModel, tokens: np.ndarray, shape: TrainingConfig):
        """model: on its device; it is put into evaluation.  tokens: the training text [n], of which the second segment
        of every stream is used, with the first one as memory.  shape: has batch, tgt_len and mem_len."""
        self.model = model.eval().requires_grad_(False)
        self.inputs: list[Tensor] = []
        """Of every block, [N, D]."""
        self.importances: list[Tensor | None] = []
        """Of the parts of every block, such as the heads of attention; None where it has no parts."""
        self._observe(StreamBatches(tokens, shape.batch, shape.tgt_len), shape.mem_len)

    @torch.no_grad()
    def _observe(self, batches: StreamBatches, mem_len: int) -> None:
        model, device = self.model, next(self.model.parameters()).device
        before, now = (model.embed(batches.batch_at(step)[0].to(device)) for step in (0, 1))
        for position, block in enumerate(model.blocks):
            run = partial(model.run_blocks, places=slice(position, position + 1), mem_len=mem_len)
            after, state, _ = run(before, None)
            output = run(now, state)[0]
            self.importances.append(block.importance(lambda run=run, x=now, s=state: run(x, s)[0], output))
            self.inputs.append(now.flatten(0, -2))
            before, now = after, output

    def nearest(self, position: int, is_wanted: Callable[[BlockSpec], bool]) -> int | None:
        """Position of the nearest block of such a specification; the earlier of two; None without any."""
        found = [i for i, spec in enumerate(self.model.architecture.blocks) if is_wanted(spec)]
        return min(found, key=lambda i: abs(i - position), default=None)

    def source(self, spec: BlockSpec, position: int) -> Source:
        """The source of initial weights of a block at this position."""
        blocks, kind = self.model.blocks, spec.starts_from or spec.kind
        nearest = self.nearest(position, lambda other: other.kind == kind)
        same_spec = self.nearest(position, lambda other: other == spec)
        return Source(
            None if nearest is None else blocks[nearest],
            None if nearest is None else self.importances[nearest],
            blocks[position] if position < len(blocks) else None,
            self.inputs[min(position, len(self.inputs) - 1)],
            None if same_spec is None else blocks[same_spec],
        )


@torch.no_grad()
def start_from_parent(
    model: LanguageModel, parent: Parent, expert_noise: float = 0.0, generator: torch.Generator | None = None
) -> None:
    """Overwrite the weights of an initialised model.

    expert_noise: standard deviation of the noise on the copies of a mixture's experts, over that of the copied weight;
    the generator makes it.
    """

    def add_noise(weight: Tensor) -> None:
        noise = torch.empty(weight.shape).normal_(generator=generator)
        weight.add_(noise.to(weight) * expert_noise * weight.std())

    copy_embedding_and_head(model, parent)
    for position, (block, spec) in enumerate(zip(model.blocks, model.architecture.blocks, strict=True)):
        start_block(block, spec, position, parent, noise=add_noise if expert_noise else None)


@torch.no_grad()
def copy_embedding_and_head(model: LanguageModel, parent: Parent) -> None:
    """Copy embedding, head and final LayerNorm."""
    names = ("embedding.", "head.", "final_norm.")
    weights = {name: tensor for name, tensor in parent.model.state_dict().items() if name.startswith(names)}
    model.load_state_dict(weights, strict=False)


@torch.no_grad()
def start_block(block: Block, spec: BlockSpec, position: int, parent: Parent, **options) -> None:
    """Overwrite the weights of the block at this position.  options: those of ``Block.start``."""
    if not spec.identity:
        start_norm(block, position, parent)
        block.start(parent.source(spec, position), **options)


@torch.no_grad()
def start_norm(block: Block, position: int, parent: Parent) -> None:
    """Copy the LayerNorm that the parent has at this position, or nearest to it."""
    nearest = parent.nearest(position, lambda spec: not spec.identity)
    if nearest is not None:
        block.norm.load_state_dict(parent.model.blocks[nearest].norm.state_dict())
