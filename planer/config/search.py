"""Phase 1 and the choice of one architecture."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from planer.config.bounds import Count, Positive, PositiveShare, Rounds, Share, StepsOrNone, Target, Weight
from planer.config.latency import Workload, WorkloadConfig
from planer.config.training import OptimizerConfig, TrainingConfig
from planer.errors import UserError
from planer.parsing import Items, Range, show


@dataclass(frozen=True)
class SearchConfig(TrainingConfig):
    """Phase 1: weights and architecture weights of a supernet, alternately."""

    epoch_steps: StepsOrNone
    alpha_share: Share
    frozen_share: Share
    temperature: Positive
    anneal: Annotated[float, Range(0, 1, above=True)]
    temperature_floor: Positive
    latency_loss: Literal["switch", "hinge", "dual"]
    latency_weight: Weight
    start: Literal["parent", "scratch"]
    distill: Annotated[float, Range(0, 1)]
    weight_sharing: Literal["heads", "all", "none"]
    sampling: Literal["fair", "plain"]
    alpha_optimizer: OptimizerConfig

    @property
    def needs_parent(self) -> bool:
        """Whether the search reads the trained baseline."""
        return self.start == "parent" or self.distill > 0


LIMITS = ("params", "active_params", "flops", "memory")
"""Limits beside latencies: latency_batch_<b>, of segments at batch size b, latency_segment and latency_decode."""


def calls_of_limit(name: str, workload: WorkloadConfig) -> Workload | None:
    """The calls whose latency a limit bounds; None for limits of something else."""
    prefix, _, last = name.rpartition("_")
    if prefix == "latency_batch" and last.isdecimal():
        return replace(workload.of("segment"), batch=int(last))
    return workload.of(last) if name in ("latency_segment", "latency_decode") else None


def is_limit(name: str) -> bool:
    """Whether a limit has this name, in its one spelling."""
    return bool(re.fullmatch(rf"{'|'.join(LIMITS)}|latency_(segment|decode|batch_[1-9][0-9]*)", name))


PROPOSERS = ("shallow", "edited", "solver", "argmax", "random", "largest")
"""Proposers of candidates; each is a file in planer/search/proposers."""


@dataclass(frozen=True)
class CandidatesConfig:
    """From proposals to one architecture."""

    proposers: dict[str, Annotated[int, Range(0, 1_000)]]
    rungs: Annotated[tuple[PositiveShare, ...], Items(1, 10)]
    tokens: Annotated[int, Range(1, 10_000_000_000)]
    scores: Literal["replace_one", "alpha"]
    rounds: Count
    limits: dict[str, Positive]
    slack: Annotated[float, Range(0, 1, above=True)]
    min_distance: Count
    corrections: Annotated[int, Range(0, 100)]
    measure_rounds: Rounds

    @property
    def needs_supernet(self) -> bool:
        """Whether a proposer uses the supernet."""
        return any(self.proposers.get(name) for name in ("solver", "argmax"))

    @property
    def count(self) -> int:
        """Most candidates of one choice."""
        return sum(self.proposers.values())

    @property
    def proxy_trainings(self) -> float:
        """Sum of all proxy trainings, in full trainings: half of the candidates go on at each rung."""
        total, count, before = 0.0, self.count, 0.0
        for share in self.rungs:
            total += count * (share - before)
            count, before = -(-count // 2), share
        return total

    def __post_init__(self) -> None:
        for name in self.proposers:
            if name not in PROPOSERS:
                raise UserError(f"proposers: unknown proposer {show(name)}; allowed: {', '.join(PROPOSERS)}")
        if not self.count:
            raise UserError(f"proposers: none proposes a network; give a number to one of {', '.join(PROPOSERS)}")
        if list(self.rungs) != sorted(set(self.rungs)):
            raise UserError(f"rungs: {list(self.rungs)} must rise")
        for name in self.limits:
            if not is_limit(name):
                allowed = ", ".join((*LIMITS, "latency_segment", "latency_decode", "latency_batch_<b>"))
                raise UserError(f"limits: unknown limit {show(name)}; allowed: {allowed}")


@dataclass(frozen=True)
class KeepConfig:
    """The search of keep_<q>: the fastest network that loses at most q."""

    targets: Annotated[tuple[Target, ...], Items(1, 100)]
    proxy_share: PositiveShare
    trained: Count

    def __post_init__(self) -> None:
        if list(self.targets) != sorted(set(self.targets), reverse=True):
            raise UserError(f"targets: {list(self.targets)} must fall")
