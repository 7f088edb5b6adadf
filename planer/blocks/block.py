"""What all blocks of a network share: the residual sum, its LayerNorm, and what a segment knows of its positions.

Letters in shapes: B sequences, T tokens of the segment, M remembered positions, K = M + T keys, D model width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Segment:
    """Positions of one forward pass, made once by the model and read by every attention block.

    positions: [K, D] sinusoids, row k for distance K-1-k, one dropout mask for all blocks.
    mask: [T, K], what is added to the scores: 0 where query i sees key j, else -inf.  (A sum, because masked_fill with
        a broadcast mask took 0.62 ms where this takes 0.05 ms: scores [16, 8, 64, 128], float32, 2 Cascade Lake cores.)
    memory_len: M, the remembered positions present.
    mem_len: the most positions that may be remembered, at least M.
    attention: ``recompute`` (memory holds block inputs) or ``cached`` (memory holds keys and values; inference only).
    """

    positions: Tensor
    mask: Tensor
    memory_len: int
    mem_len: int
    attention: str


class Block(nn.Module):
    """A position-wise sublayer with its residual and LayerNorm.

    Post-norm is LN(x + sublayer(x)), the Transformer-XL default; pre-norm is x + sublayer(LN(x)).
    """

    uses_memory = False

    def __init__(self, sublayer: nn.Module, d_model: int, norm: str):
        super().__init__()
        if norm not in ("post", "pre"):
            raise ValueError(f"norm is {norm!r}; allowed: post, pre")
        self.sublayer = sublayer
        self.norm = nn.LayerNorm(d_model)
        self.pre_norm = norm == "pre"

    def forward(self, x: Tensor, segment: Segment, memory=None) -> tuple[Tensor, None]:
        """x: [B, T, D].  Returns the block's output and None: there is nothing to remember."""
        if self.pre_norm:
            return x + self.sublayer(self.norm(x)), None
        return self.norm(x + self.sublayer(x)), None


class AttentionBlock(Block):
    """An attention sublayer with its residual and LayerNorm."""

    uses_memory = True

    def forward(self, x: Tensor, segment: Segment, memory=None) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """x: [B, T, D]; memory: block inputs [B, M, D], or cached keys and values, or None for none.

        Returns the block's output and, in cached attention, the keys and values for the next segment.
        """
        if not self.pre_norm:
            y, state = self.sublayer(x, segment, memory)
            return self.norm(x + y), state
        if torch.is_tensor(memory):
            memory = self.norm(memory)
        y, state = self.sublayer(self.norm(x), segment, memory)
        return x + y, state
