"""Phase 1 and the choice of one architecture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from planer.config.bounds import Count, Positive, PositiveShare, Rounds, Share, StepsOrNone, Target, Weight
from planer.config.training import OptimizerConfig, TrainingConfig
from planer.errors import UserError
from planer.parsing import Items, Range, show


@dataclass(frozen=True)
class SearchConfig(TrainingConfig):
    """Phase 1: supernet weights and architecture weights in turn."""

    epoch_steps: StepsOrNone
    """Weight steps per search epoch (annealing and the freeze count epochs); 0 means one pass over the corpus."""
    alpha_share: Share
    """Share of an epoch's samples on which the architecture weights are trained, soft-sampled."""
    frozen_share: Share
    """Share of epochs at the start during which the architecture weights stay frozen."""
    temperature: Positive
    """Gumbel-softmax temperature until annealing starts."""
    anneal: Annotated[float, Range(0, 1, above=True)]
    """Factor on the temperature after each unfrozen epoch."""
    temperature_floor: Positive
    """The temperature never falls below this (below about 0.1 gradients vanish or spike)."""
    latency_loss: Literal["switch", "hinge", "dual"]
    """How the latency loss presses: beta on or off (the paper), a smooth hinge, or a multiplier by dual ascent."""
    latency_weight: Weight
    """beta while the expected latency exceeds the target; slope of the hinge; step size of the dual ascent."""
    start: Literal["parent", "scratch"]
    """What the supernet starts from: the weights of the trained baseline, or random ones."""
    distill: Annotated[float, Range(0, 1)]
    """w: share of the divergence from the baseline in the loss of every step; the cross-entropy has the rest."""
    weight_sharing: Literal["heads", "all", "none"]
    """Attention options share their heads; mixtures of experts share their experts too; or every option has its own
    weights (the paper)."""
    sampling: Literal["fair", "plain"]
    """Kinds of options equally often, whatever their number, in cycles while the architecture weights are frozen; or by
    the architecture weights alone (the paper)."""
    alpha_optimizer: OptimizerConfig

    @property
    def needs_parent(self) -> bool:
        """Whether the search reads the trained baseline."""
        return self.start == "parent" or self.distill > 0


LIMITS = ("params", "active_params", "flops", "memory")
"""What a chosen network can be held to beside its latency; and latency_batch_<b>: its latency at another batch size."""


def batch_of_limit(name: str) -> int | None:
    """The batch size b of a limit latency_batch_<b>; None for other limits."""
    stem, _, batch = name.rpartition("_")
    return int(batch) if stem == "latency_batch" and batch.isdecimal() else None


PROPOSERS = ("shallow", "edited", "solver", "argmax", "random", "largest")
"""What proposes candidates, one file each in planer/search/proposers."""


@dataclass(frozen=True)
class CandidatesConfig:
    """From proposals to one architecture."""

    proposers: dict[str, Annotated[int, Range(0, 1_000)]]
    """How many candidates each proposer contributes: shallow, edited, solver, argmax, random, largest."""
    rungs: Annotated[tuple[PositiveShare, ...], Items(1, 10)]
    """Proxy training by successive halving: all candidates are trained to the first of these shares of their training,
    the better half goes on to the next one, and so on."""
    tokens: Annotated[int, Range(1, 10_000_000_000)]
    """Validation text read per network by scores and by the loss before training."""
    scores: Literal["replace_one", "alpha"]
    """What the solver maximises: the fall of the supernet's validation loss when one option is switched, or the
    logarithm of the architecture weights' softmax."""
    rounds: Count
    """How often replace_one scores anew around the network chosen last."""
    limits: dict[str, Positive]
    """Further limits as shares of the baseline's: params, active_params, flops, memory, latency_batch_<b>."""
    slack: Annotated[float, Range(0, 1, above=True)]
    """Share of the latency budget that the solver may leave unused where some network uses more."""
    min_distance: Count
    """Positions at which any two of the solver's networks differ."""
    corrections: Annotated[int, Range(0, 100)]
    """How often candidates may be measured, found slower than the target, and proposed again; 0: not measured."""
    measure_rounds: Rounds
    """Timed rounds per measurement, in turn with the baseline."""

    @property
    def needs_supernet(self) -> bool:
        """Whether a proposer asks the supernet."""
        return any(self.proposers.get(name) for name in ("solver", "argmax"))

    @property
    def count(self) -> int:
        """Most candidates of one choice."""
        return sum(self.proposers.values())

    @property
    def proxy_trainings(self) -> float:
        """Proxy trainings together, in whole trainings: half of the candidates go on at each rung."""
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
            if name not in LIMITS and batch_of_limit(name) is None:
                allowed = ", ".join((*LIMITS, "latency_batch_<b>"))
                raise UserError(f"limits: unknown limit {show(name)}; allowed: {allowed}")


@dataclass(frozen=True)
class KeepConfig:
    """The search of keep_<q>: the fastest network that loses at most q."""

    targets: Annotated[tuple[Target, ...], Items(1, 100)]
    """Latencies over the baseline's at which a network is looked at, from the loosest to the strictest."""
    proxy_share: PositiveShare
    """Share of its training after which a network's end is predicted."""
    trained: Count
    """Networks trained to the end at most."""

    def __post_init__(self) -> None:
        if list(self.targets) != sorted(set(self.targets), reverse=True):
            raise UserError(f"targets: {list(self.targets)} must fall")
