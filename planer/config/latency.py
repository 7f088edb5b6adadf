"""The inference load whose latency counts, and how it is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from planer.files import UserError
from planer.parsing import not_negative, positive, share


@dataclass(frozen=True)
class WorkloadConfig:
    """The inference load whose latency counts."""

    batch: int
    """Sequences scored side by side."""
    tgt_len: int
    """Tokens scored per call and sequence."""
    mem_len: int
    """Remembered positions that each call attends to."""
    attention: Literal["cached", "recompute"]
    """Keep keys and values of the memory (exact at inference), or recompute them from hidden states (the paper)."""
    execution: Literal["eager", "compiled", "graph"]
    """Kernel by kernel, blocks compiled by torch.compile, or replayed as a CUDA graph (CUDA only)."""

    def __post_init__(self) -> None:
        positive(self, "batch", "tgt_len")
        not_negative(self, "mem_len")


@dataclass(frozen=True)
class ProfileConfig:
    """Measuring the latency table and checking that latencies add up."""

    copies: int
    """N: a block's cost is the difference between stacks of 2N and N copies, over N."""
    warmup: int
    """Calls before timing starts, per stack."""
    rounds: int
    """Timed rounds; every round measures every stack once, in random order."""
    max_seconds: float
    """Stop after this long, at a whole round and after at least three."""
    batches: tuple[int, ...]
    """Batch sizes measured beside workload.batch; each takes up to max_seconds."""
    executions: tuple[Literal["eager", "compiled", "graph"], ...]
    """Execution modes measured beside workload.execution, for all batch sizes; each takes up to max_seconds."""
    networks: int
    """Random networks measured against the sum of their table entries."""
    min_r: float
    """Pearson's correlation of these sums with the measured latencies should be at least this."""
    max_mape: float
    """Their mean absolute error, as a share of the measured latency, should be at most this."""
    max_ape: float
    """The largest of these errors should be at most this."""

    def __post_init__(self) -> None:
        positive(self, "copies", "rounds", "max_seconds", "networks", "max_mape", "max_ape")
        share(self, "min_r")
        not_negative(self, "warmup")
        for batch in self.batches:
            if batch < 1:
                raise UserError(f"batches: {batch} must be above 0")
