"""Phase 1 and the choice of one architecture."""

from __future__ import annotations

import math
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

    def epochs(self, segments: int) -> SearchEpochs:
        """segments: of one pass over the training text."""
        return SearchEpochs(self, self.epoch_steps or segments)


@dataclass(frozen=True)
class SearchEpochs:
    """How many steps a search has in each epoch."""

    config: SearchConfig
    length: int
    """Weight steps of an epoch."""

    @property
    def count(self) -> int:
        """Epochs of the search."""
        return math.ceil(self.config.steps / self.length)

    @property
    def frozen(self) -> int:
        """Epochs at the start without architecture steps."""
        return math.ceil(self.config.frozen_share * self.config.steps / self.length)

    def weight_steps(self, epoch: int) -> int:
        """Of an epoch; the last one may be shorter than the others."""
        return min(self.length, self.config.steps - epoch * self.length)

    def alpha_steps(self, epoch: int) -> int:
        """Architecture steps of an epoch."""
        return round(self.config.alpha_share * self.weight_steps(epoch)) if epoch >= self.frozen else 0

    def check(self) -> None:
        """Raise UserError when no epoch has architecture steps; none has more than the first after the frozen ones."""
        if self.frozen >= self.count or not self.alpha_steps(self.frozen):
            config = self.config
            raise UserError(
                f"search: none of {self.count} epochs of {self.length} weight steps trains the architecture weights "
                f"(alpha_share {config.alpha_share:g}, frozen_share {config.frozen_share:g}); change "
                "search.epoch_steps, or raise search.alpha_share or search.steps"
            )


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
    def cuts(self) -> bool:
        """Whether a proposer orders cuts of the baseline by their loss before training."""
        return any(self.proposers.get(name) for name in ("shallow", "edited"))

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
