"""Phase 1 and the choice of one architecture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from planer.config.training import OptimizerConfig, TrainingConfig
from planer.files import UserError
from planer.parsing import not_negative, positive, share


@dataclass(frozen=True)
class SearchConfig(TrainingConfig):
    """Phase 1: supernet weights and architecture weights in turn."""

    epoch_steps: int
    """Weight steps per search epoch (annealing and the freeze count epochs); 0 means one pass over the corpus."""
    alpha_share: float
    """Share of an epoch's samples on which the architecture weights are trained, soft-sampled."""
    frozen_share: float
    """Share of epochs at the start during which the architecture weights stay frozen."""
    temperature: float
    """Gumbel-softmax temperature until annealing starts."""
    anneal: float
    """Factor on the temperature after each unfrozen epoch."""
    temperature_floor: float
    """The temperature never falls below this (below about 0.1 gradients vanish or spike)."""
    latency_loss: Literal["switch", "hinge", "dual"]
    """How the latency loss presses: beta on or off (the paper), a smooth hinge, or a multiplier by dual ascent."""
    latency_weight: float
    """beta while the expected latency exceeds the target; slope of the hinge; step size of the dual ascent."""
    alpha_optimizer: OptimizerConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "temperature", "anneal", "temperature_floor")
        not_negative(self, "epoch_steps", "latency_weight")
        share(self, "alpha_share", "frozen_share")


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
    rounds: int
    """How often replace_one scores anew around the network chosen last."""
    tokens: int
    """Validation text read per network, by replace_one and after trials."""
    limits: dict[str, float]
    """Further limits as shares of the baseline's: params, active_params, flops, memory, latency_batch_<b>."""
    slack: float
    """Share of the latency budget that may stay unused where some network uses more; milp only."""
    num_solutions: int
    """The solver's best networks, among which the beginnings of their trainings decide."""
    min_distance: int
    """Positions at which any two of them differ."""
    num_random: int
    """Networks drawn at random within the same limits that compete with them."""
    trial_share: float
    """How much of its training each of them gets, as a share of the retraining's steps, the worse half only half of
    it; where there is only one network, it is used untried."""
    corrections: int
    """How often the network may be measured, found slower than its target, and chosen again; 0: not measured."""
    measure_rounds: int
    """Timed rounds per measurement, in turn with the baseline."""

    @property
    def competitors(self) -> int:
        """Networks among which beginnings of their trainings decide."""
        return self.num_solutions + self.num_random

    def __post_init__(self) -> None:
        positive(self, "rounds", "tokens", "slack", "num_solutions", "min_distance", "measure_rounds")
        positive(self, "trial_share")
        share(self, "trial_share")
        not_negative(self, "corrections", "num_random")
        for name, value in self.limits.items():
            if name not in LIMITS and batch_of_limit(name) is None:
                allowed = ", ".join((*LIMITS, "latency_batch_<b>"))
                raise UserError(f"limits: unknown limit {name!r}; allowed: {allowed}")
            if value <= 0:
                raise UserError(f"limits: {name} is {value}; it must be above 0")
