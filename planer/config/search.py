"""Phase 1 and the choice of one architecture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from planer.config.bounds import Count, Positive, PositiveShare, Rounds, Share, StepsOrNone, Weight
from planer.config.training import OptimizerConfig, TrainingConfig
from planer.files import UserError
from planer.parsing import Range, show


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


@dataclass(frozen=True)
class SampleConfig:
    """From a trained supernet to one architecture."""

    solver: Literal["milp", "argmax"]
    """Best total score within the latency budget, proven; or the paper's argmax, which can miss the target."""
    scores: Literal["replace_one", "alpha"]
    """What the solver maximises: the fall of the supernet's validation loss when one option is switched, or the
    logarithm of the architecture weights' softmax."""
    rounds: Count
    """How often replace_one scores anew around the network chosen last."""
    tokens: Annotated[int, Range(1, 10_000_000_000)]
    """Validation text read per network, by replace_one and after trials."""
    limits: dict[str, Positive]
    """Further limits as shares of the baseline's: params, active_params, flops, memory, latency_batch_<b>."""
    slack: Annotated[float, Range(0, 1, above=True)]
    """Share of the latency budget that may stay unused where some network uses more; milp only."""
    num_solutions: Count
    """The solver's best networks, among which the beginnings of their trainings decide."""
    min_distance: Count
    """Positions at which any two of them differ."""
    num_random: Annotated[int, Range(0, 1_000)]
    """Networks drawn at random within the same limits that compete with them."""
    trial_share: PositiveShare
    """How much of its training each of them gets, as a share of the retraining's steps, the worse half only half of
    it; where there is only one network, it is used untried."""
    corrections: Annotated[int, Range(0, 100)]
    """How often the network may be measured, found slower than its target, and chosen again; 0: not measured."""
    measure_rounds: Rounds
    """Timed rounds per measurement, in turn with the baseline."""

    @property
    def competitors(self) -> int:
        """Networks among which beginnings of their trainings decide."""
        return self.num_solutions + self.num_random

    def __post_init__(self) -> None:
        for name in self.limits:
            if name not in LIMITS and batch_of_limit(name) is None:
                allowed = ", ".join((*LIMITS, "latency_batch_<b>"))
                raise UserError(f"limits: unknown limit {show(name)}; allowed: {allowed}")
