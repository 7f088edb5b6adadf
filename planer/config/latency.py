"""The inference load whose latency counts, and how it is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from planer.config.bounds import Batch, Count, Length, Memory, Positive, Rounds, Share
from planer.errors import UserError
from planer.parsing import Items, Range

ATTENTIONS = ("cached", "recompute")
"""Attention modes in inference: keys and values of the memory kept, or recomputed from hidden states."""


DECODE = "decode"
"""Execution of a call that reads one token of every sequence with the decode engine (planer/models/decoder.py)."""


@dataclass(frozen=True)
class Workload:
    """Calls of one kind."""

    batch: Batch
    tgt_len: Length
    mem_len: Memory
    attention: Literal["cached", "recompute"]
    execution: Literal["eager", "compiled", "graph", "decode"]

    @property
    def decodes(self) -> bool:
        """Whether a call is a step of text generation."""
        return self.execution == DECODE

    @property
    def attentions(self) -> tuple[str, ...]:
        """Attention modes in which such calls can run."""
        return ATTENTIONS[:1] if self.decodes else ATTENTIONS

    @property
    def reads(self) -> float:
        """How often a token passes projections of keys and values, which memory passes again where it is recomputed."""
        return 1.0 if self.attention == "cached" else (self.tgt_len + self.mem_len) / self.tgt_len

    @property
    def excerpt(self) -> int:
        """Tokens that one timed sequence reads: memory, segment, and the last target."""
        return self.mem_len + self.tgt_len + 1


@dataclass(frozen=True)
class DecodeConfig:
    """Steps of text generation: sequences, and tokens before the next one."""

    batch: Batch = 1
    mem_len: Memory = 512


@dataclass(frozen=True)
class WorkloadConfig(Workload):
    """The inference load whose latency counts: segments, steps of text generation, or both."""

    execution: Literal["eager", "compiled", "graph"]
    kinds: Annotated[tuple[Literal["segment", "decode"], ...], Items(1, 2)] = ("segment",)
    decode: DecodeConfig = DecodeConfig()

    def __post_init__(self) -> None:
        if "segment" not in self.kinds:
            raise UserError(
                f"kinds: {list(self.kinds)} lacks segment, from which training times are estimated; "
                "write [decode, segment]"
            )

    def of(self, kind: str) -> Workload:
        """The calls of a kind."""
        if kind == DECODE:
            return Workload(self.decode.batch, 1, self.decode.mem_len, ATTENTIONS[0], DECODE)
        return Workload(self.batch, self.tgt_len, self.mem_len, self.attention, self.execution)

    @property
    def measured(self) -> tuple[Workload, ...]:
        """The calls of every kind, the target's first."""
        return tuple(map(self.of, self.kinds))

    @property
    def target(self) -> Workload:
        """The calls whose latency is the target."""
        return self.measured[0]


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
