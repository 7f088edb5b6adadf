"""The inference load whose latency counts, and how it is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from planer.config.bounds import Batch, Count, Length, Memory, Positive, Rounds, Share
from planer.parsing import Items, Range


@dataclass(frozen=True)
class WorkloadConfig:
    """The inference load whose latency counts."""

    batch: Batch
    tgt_len: Length
    mem_len: Memory
    attention: Literal["cached", "recompute"]
    execution: Literal["eager", "compiled", "graph"]

    @property
    def excerpt(self) -> int:
        """Tokens that one timed sequence reads: memory, segment, and the last target."""
        return self.mem_len + self.tgt_len + 1


@dataclass(frozen=True)
class ProfileConfig:
    """Measuring the latency table and checking that latencies add up."""

    copies: Annotated[int, Range(1, 100)]
    warmup: Annotated[int, Range(0, 100_000)]
    rounds: Rounds
    max_seconds: Positive
    batches: Annotated[tuple[Batch, ...], Items(0, 100)]
    executions: Annotated[tuple[Literal["eager", "compiled", "graph"], ...], Items(0, 3)]
    networks: Count
    min_r: Share
    max_mape: Positive
    max_ape: Positive
