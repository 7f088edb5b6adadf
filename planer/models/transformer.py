"""The language model: embedding, blocks with memory, head.

Letters in shapes: B sequences, T tokens of a segment, M remembered positions, K = M + T, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from planer.blocks.block import Aux, Segment, Wants
from planer.models.embedding import build_embedding
from planer.models.head import Head
from planer.models.positions import sinusoids
from planer.specs import Architecture


@dataclass(frozen=True)
class Reading:
    """How a segment is read."""

    mem_len: int
    """Positions to remember."""
    same_length: bool = False
    """Every query sees exactly mem_len + 1 keys."""
    clamp_len: int = 0
    """Distances beyond it count as it; 0 switches this off."""
    attention: str = "recompute"
    """``recompute`` remembers block inputs, ``cached`` keys and values (the same, for inference only)."""
    wants: Wants = ()
    """Names of what blocks hand on beside their outputs (``planer.blocks.block.Aux``)."""

    def __post_init__(self) -> None:
        if self.attention not in ("recompute", "cached"):
            raise ValueError(f"attention is {self.attention!r}; allowed: recompute, cached")


@dataclass(frozen=True)
class Output:
    """What a forward pass gives."""

    hidden: Tensor
    """States behind the last block [B, T, D]."""
    score: Tensor | None
    """What ``score`` made of them."""
    state: list
    """The memory for the next segment: one entry per block, None where the block uses none."""
    aux: list[Aux]
    """What blocks handed on, one entry per block."""


class LanguageModel(nn.Module):
    """A Transformer-XL style language model over any sequence of blocks.

    Weights are zeros or PyTorch's defaults until ``initialise`` or ``load``.
    """

    def __init__(self, architecture: Architecture, blocks: Iterable[nn.Module] | None = None):
        """blocks: modules to use instead of the architecture's own, such as the super blocks of a search."""
        super().__init__()
        self.architecture = architecture
        vocab_size, d_model, head = architecture.vocab_size, architecture.d_model, architecture.head
        embedding = build_embedding(head.tables(vocab_size, d_model), d_model)
        self.head = Head(head, embedding, vocab_size, d_model)
        self.embedding = embedding
        if blocks is None:
            blocks = (spec.build(architecture) for spec in architecture.blocks)
        self.blocks = nn.ModuleList(blocks)
        self.final_norm = nn.LayerNorm(architecture.d_model) if architecture.norm == "pre" else nn.Identity()
        self.dropout = nn.Dropout(architecture.dropout)
        self._last_segment: tuple[tuple, Segment] | None = None
        self.decoder = None  # of planer/models/decoder.py

    def train(self, mode: bool = True) -> LanguageModel:
        self._last_segment = self.decoder = None
        return super().train(mode)

    def forward(
        self,
        tokens: Tensor,
        state: list | None = None,
        score: Callable[[Tensor], Tensor] | None = None,
        **reading,
    ) -> Output:
        """Read one segment.

        tokens: [B, T] int64.  state: what the previous segment gave, None at the start.  reading: see ``Reading``.
        score: what to make of the hidden states [B, T, D], such as their loss (``nll``).  Computed in here, it is part
        of the forward pass for whatever wraps the network.
        """
        hidden, state, aux = self.run_blocks(self.embed(tokens), state, **reading)
        hidden = self.dropout(self.final_norm(hidden))
        return Output(hidden, None if score is None else score(hidden), state, aux)

    def embed(self, tokens: Tensor) -> Tensor:
        """[B, T] int64 to [B, T, D]: embeddings times sqrt(D), with dropout."""
        return self.dropout(self.embedding(tokens))

    def run_blocks(
        self, x: Tensor, state: list | None, places: slice = slice(None), **reading
    ) -> tuple[Tensor, list, list[Aux]]:
        """The blocks alone, or those at some places: x [B, T, D] and their state in; the last one's output, the next
        state and what blocks hand on out.  reading: see ``Reading``."""
        how = Reading(**reading)
        if self.training and how.attention == "cached":
            raise ValueError("cached attention is exact at inference only; call eval() or use recompute")
        blocks = self.blocks[places]
        state = state or [None] * len(blocks)
        segment = self._segment(x, min(_memory_len(state), how.mem_len), how)
        next_state, aux = [], []
        for block, entry in zip(blocks, state, strict=True):
            block_input = x
            x, following, more = block(x, segment, entry)
            if block.uses_memory and how.attention == "recompute":
                following = _newest(entry, block_input, how.mem_len + block.lookback)
            next_state.append(following)
            aux.append(more)
        return x, next_state, aux

    def _segment(self, x: Tensor, memory_len: int, how: Reading) -> Segment:
        """Position table and mask; an evaluating model keeps those of its last shape."""
        device, keys = x.device, memory_len + x.shape[1]
        keep = not self.training and not torch.is_grad_enabled()
        shape = (keys, memory_len, how, x.dtype, device, torch.is_autocast_enabled(device.type))
        if keep and self._last_segment and self._last_segment[0] == shape:
            return self._last_segment[1]
        key = torch.arange(keys, device=device)
        distance = keys - 1 - key
        clamped = distance.clamp(max=how.clamp_len) if how.clamp_len else distance
        positions = sinusoids(clamped, x.shape[2]).to(x.dtype)
        behind = torch.arange(memory_len, keys, device=device)[:, None] - key
        hidden = (behind < 0) | (behind > how.mem_len) if how.same_length else behind < 0
        mask = torch.zeros(hidden.shape, dtype=x.dtype, device=device).masked_fill_(hidden, -torch.inf)
        segment = Segment(self.dropout(positions), mask, memory_len, how.mem_len, how.attention, how.wants)
        self._last_segment = (shape, segment) if keep else None
        return segment

    def nll(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Negative log-likelihood of targets [B, T], in nats per token: [B, T], single precision."""
        return self.head.loss(hidden, targets)

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., D] to [..., V], in at least single precision: their softmax is the distribution of the next token."""
        return self.head.logits(hidden)

    def log_probs(self, hidden: Tensor) -> Tensor:
        """[..., D] to log-probabilities of the next token [..., V], in at least single precision."""
        return self.head.log_probs(hidden)

    def dynamic_blocks(self) -> list[nn.Module]:
        """Layers that were split into dynamically executed experts, from the first block to the last."""
        return self._sublayers("dynamic")

    def feed_forward_blocks(self) -> list[nn.Module]:
        """Dense feed-forward layers, MLPs in the place of attention projections among them, from the first block to the
        last."""
        return self._sublayers("splits")

    def _sublayers(self, mark: str) -> list[nn.Module]:
        """Those whose class has this attribute, named like that of their specification."""
        return [module for module in self.blocks.modules() if getattr(module, mark, False)]


def _memory_len(memory: list) -> int:
    """Remembered positions in a memory list: hidden states [B, M, D] or keys and values [B, H, M, Dh]."""
    for entry in memory:
        if entry is not None:
            return entry.shape[1] if torch.is_tensor(entry) else entry[0].shape[2]
    return 0


def _newest(memory: Tensor | None, x: Tensor, mem_len: int) -> Tensor:
    """The last mem_len positions of memory [B, M, D] and segment [B, T, D], cut off from the gradient."""
    x = x.detach()
    seen = x if memory is None or x.shape[1] >= mem_len else torch.cat((memory, x), dim=1)
    return seen[:, max(seen.shape[1] - mem_len, 0) :]
