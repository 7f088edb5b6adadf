"""The protocol that chooses a dynamic-k threshold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from planer.config.bounds import Batch, Length, Memory, Share
from planer.parsing import Items, Range


@dataclass(frozen=True)
class ThresholdConfig:
    """The headline protocol, and the choice of a dynamic-k threshold by it."""

    batch: Batch
    tgt_len: Length
    mem_len: Memory
    clamp_len: Memory
    taus: Annotated[tuple[Annotated[float, Range(0, 1)], ...], Items(0, 100)]
    tolerance: Share
