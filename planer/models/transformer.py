"""The language model: embedding, blocks with memory, head.

Letters in shapes: B sequences, T tokens of a segment, M remembered positions, K = M + T, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from planer.blocks.block import Segment
from planer.models.embedding import build_embedding
from planer.models.head import Head
from planer.models.positions import sinusoids
from planer.specs import Architecture


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

    def train(self, mode: bool = True) -> LanguageModel:
        self._last_segment = None
        return super().train(mode)

    def forward(
        self,
        tokens: Tensor,
        memory: list | None = None,
        *,
        mem_len: int,
        same_length: bool = False,
        clamp_len: int = 0,
        attention: str = "recompute",
        score: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, list]:
        """Read one segment.

        tokens: [B, T] int64.  memory: what the previous segment returned, None at the start.
        mem_len: positions to remember.  same_length: every query sees exactly mem_len + 1 keys.
        clamp_len: distances beyond it count as it; 0 switches this off.
        attention: ``recompute`` remembers block inputs, ``cached`` keys and values (the same, for inference only).
        score: what to make of the hidden states [B, T, D], such as their loss (``nll``).  Computed in here, it is part
        of the forward pass for whatever wraps the network.
        Returns the score, or without one the hidden states, and the memory: one entry per block, None where the block
        uses none.
        """
        hidden, memory = self.run_blocks(
            self.embed(tokens),
            memory,
            mem_len=mem_len,
            same_length=same_length,
            clamp_len=clamp_len,
            attention=attention,
        )
        hidden = self.dropout(self.final_norm(hidden))
        return hidden if score is None else score(hidden), memory

    def embed(self, tokens: Tensor) -> Tensor:
        """[B, T] int64 to [B, T, D]: embeddings times sqrt(D), with dropout."""
        return self.dropout(self.embedding(tokens))

    def run_blocks(
        self,
        x: Tensor,
        memory: list | None,
        *,
        mem_len: int,
        same_length: bool = False,
        clamp_len: int = 0,
        attention: str = "recompute",
        places: slice = slice(None),
    ) -> tuple[Tensor, list]:
        """The blocks alone, or those at some places: x [B, T, D] and their memory in, the last one's output and the
        next memory out."""
        if attention not in ("recompute", "cached"):
            raise ValueError(f"attention is {attention!r}; allowed: recompute, cached")
        if self.training:
            if attention == "cached":
                raise ValueError("cached attention is exact at inference only; call eval() or use recompute")
            for moe in self.moe_blocks():
                moe.balance = None
        blocks = self.blocks[places]
        memory = memory or [None] * len(blocks)
        memory_len = min(_memory_len(memory), mem_len)
        segment = self._segment(x, memory_len, mem_len, same_length, clamp_len, attention)
        next_memory = []
        for block, entry in zip(blocks, memory, strict=True):
            block_input = x
            x, state = block(x, segment, entry)
            if block.uses_memory and attention == "recompute":
                state = _newest(entry, block_input, mem_len + block.lookback)
            next_memory.append(state)
        return x, next_memory

    def _segment(
        self, x: Tensor, memory_len: int, mem_len: int, same_length: bool, clamp_len: int, attention: str
    ) -> Segment:
        """Position table and mask; an evaluating model keeps those of its last shape."""
        device, length, keys = x.device, x.shape[1], memory_len + x.shape[1]
        keep = not self.training and not torch.is_grad_enabled()
        autocast = torch.is_autocast_enabled(device.type)
        shape = (length, memory_len, mem_len, same_length, clamp_len, attention, x.dtype, device, autocast)
        if keep and self._last_segment and self._last_segment[0] == shape:
            return self._last_segment[1]
        key = torch.arange(keys, device=device)
        distance = keys - 1 - key
        positions = sinusoids(distance.clamp(max=clamp_len) if clamp_len else distance, x.shape[2]).to(x.dtype)
        behind = torch.arange(memory_len, keys, device=device)[:, None] - key
        hidden = (behind < 0) | (behind > mem_len) if same_length else behind < 0
        mask = torch.zeros(hidden.shape, dtype=x.dtype, device=device).masked_fill_(hidden, -torch.inf)
        segment = Segment(self.dropout(positions), mask, memory_len, mem_len, attention)
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

    def balance_loss(self) -> Tensor:
        """Mean load-balancing loss of the mixtures of experts that ran in the last training pass; 0 without any."""
        losses = [moe.balance for moe in self.moe_blocks() if moe.balance is not None]
        return torch.stack(losses).mean() if losses else next(self.parameters()).new_zeros(())

    def moe_blocks(self) -> list[nn.Module]:
        """Mixture-of-experts sublayers, from the first block to the last."""
        return self._sublayers("routes")

    def dynamic_blocks(self) -> list[nn.Module]:
        """Sublayers that were split into dynamically executed experts, from the first block to the last."""
        return self._sublayers("dynamic")

    def feed_forward_blocks(self) -> list[nn.Module]:
        """Dense feed-forward sublayers, from the first block to the last."""
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
