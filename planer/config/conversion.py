"""From dense feed-forward layers to small experts with routers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from planer.config.training import TrainingConfig
from planer.parsing import not_negative, positive


@dataclass(frozen=True)
class SparsifyConfig(TrainingConfig):
    """Fine-tuning that enforces activation sparsity in the dense feed-forward layers."""

    penalty: Literal["hoyer", "l1"]
    """Square Hoyer (sum |a|)^2 / sum a^2, or the L1 norm, per token, on post-ReLU activations."""
    weight: float
    """alpha: weight of the penalty after the ramp."""
    ramp: Literal["none", "linear", "linear_warmup"]
    """Constant alpha, alpha * t/T, or alpha * min(1, t/(T/2))."""
    balance_weight: float
    """lambda of the Switch load-balancing loss, for networks with mixtures of experts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        not_negative(self, "weight", "balance_weight")


@dataclass(frozen=True)
class ClusterConfig:
    """Splitting dense layers into experts."""

    expert_size: int
    """Neurons per expert; must divide d_inner."""
    restarts: int
    """k-means initialisations; the best is kept."""
    max_iterations: int
    """Lloyd iterations per initialisation."""

    def __post_init__(self) -> None:
        positive(self, "expert_size", "restarts", "max_iterations")


@dataclass(frozen=True)
class RouterConfig(TrainingConfig):
    """Routers that regress the norm of each expert's output."""

    width: int
    """Hidden neurons of the two-layer router."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "width")
