"""The protocol that chooses a dynamic-k threshold."""

from __future__ import annotations

from collections.abc import Iterable
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


def row_at(rows: Iterable[dict], tau: float | None) -> dict | None:
    """The row of a threshold among those of a sweep; None where there is none."""
    return next((row for row in rows if row["tau"] == tau), None)
