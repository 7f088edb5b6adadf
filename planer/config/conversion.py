"""From dense feed-forward layers to small experts with routers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from planer.config.bounds import Count, Rounds, Weight, Width
from planer.config.training import TrainingConfig


@dataclass(frozen=True)
class SparsifyConfig(TrainingConfig):
    """Fine-tuning that enforces activation sparsity in the dense feed-forward layers."""

    penalty: Literal["hoyer", "l1"]
    """Square Hoyer (sum |a|)^2 / sum a^2, or the L1 norm, per token, on post-ReLU activations."""
    weight: Weight
    """alpha: weight of the penalty after the ramp."""
    ramp: Literal["none", "linear", "linear_warmup"]
    """Constant alpha, alpha * t/T, or alpha * min(1, t/(T/2))."""
    balance_weight: Weight
    """lambda of the Switch load-balancing loss, for networks with mixtures of experts."""


@dataclass(frozen=True)
class ClusterConfig:
    """Splitting dense layers into experts."""

    expert_size: Width
    """Neurons per expert; must divide d_inner."""
    restarts: Count
    """k-means initialisations; the best is kept."""
    max_iterations: Rounds
    """Lloyd iterations per initialisation."""


@dataclass(frozen=True)
class RouterConfig(TrainingConfig):
    """Routers that regress the norm of each expert's output."""

    width: Width
    """Hidden neurons of the two-layer router."""
