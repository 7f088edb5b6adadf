"""What the choice of a dynamic-k threshold depends on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from planer.config.bounds import Batch, Length, Memory, Share
from planer.parsing import Items, Range


@dataclass(frozen=True)
class ThresholdConfig:
    """The headline protocol, and the choice of a dynamic-k threshold by it."""

    batch: Batch
    """Streams scored side by side."""
    tgt_len: Length
    """Tokens per call of the headline protocol; with same_length it does not change the result."""
    mem_len: Memory
    """Remembered positions of the headline protocol."""
    clamp_len: Memory
    """Distances beyond this are treated as this far; needed when mem_len exceeds what training saw. 0 is off."""
    taus: Annotated[tuple[Annotated[float, Range(0, 1)], ...], Items(0, 100)]
    """Dynamic-k thresholds; 0 (all experts) is always evaluated."""
    tolerance: Share
    """Share of nll that a network or a dynamic-k threshold may lose and still keep the quality."""
