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
    """Sequences scored side by side."""
    tgt_len: Length
    """Tokens scored per call and sequence."""
    mem_len: Memory
    """Remembered positions that each call attends to."""
    attention: Literal["cached", "recompute"]
    """Keep keys and values of the memory (exact at inference), or recompute them from hidden states (the paper)."""
    execution: Literal["eager", "compiled", "graph"]
    """Kernel by kernel, blocks compiled by torch.compile, or replayed as a CUDA graph (CUDA only)."""

    @property
    def excerpt(self) -> int:
        """Tokens of text that one timed sequence reads: memory, segment, and the last target."""
        return self.mem_len + self.tgt_len + 1


@dataclass(frozen=True)
class ProfileConfig:
    """Measuring the latency table and checking that latencies add up."""

    copies: Annotated[int, Range(1, 100)]
    """N: a block's cost is the difference between stacks of 2N and N copies, over N."""
    warmup: Annotated[int, Range(0, 100_000)]
    """Calls before timing starts, per stack."""
    rounds: Rounds
    """Timed rounds; every round measures every stack once, in random order."""
    max_seconds: Positive
    """Stop after this long, at a whole round and after at least three."""
    batches: Annotated[tuple[Batch, ...], Items(0, 100)]
    """Batch sizes measured beside workload.batch; each takes up to max_seconds."""
    executions: Annotated[tuple[Literal["eager", "compiled", "graph"], ...], Items(0, 3)]
    """Execution modes measured beside workload.execution, for all batch sizes; each takes up to max_seconds."""
    networks: Count
    """Random networks measured against the sum of their table entries."""
    min_r: Share
    """Pearson's correlation of these sums with the measured latencies should be at least this."""
    max_mape: Positive
    """Their mean absolute error, as a share of the measured latency, should be at most this."""
    max_ape: Positive
    """The largest of these errors should be at most this."""
