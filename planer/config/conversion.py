"""From dense feed-forward layers to small experts with routers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from planer.config.bounds import Count, Rounds, Weight, Width
from planer.config.training import TrainingConfig
from planer.parsing import Range


@dataclass(frozen=True)
class ProjectionConfig(TrainingConfig):
    """Distillation of MLPs that replace attention projections."""

    replace: bool
    width_factor: Annotated[float, Range(0.01, 100)]
    weight: Weight
    ramp: Literal["none", "linear", "linear_warmup"]


def hidden_width(d_in: int, d_out: int, factor: float) -> int:
    """Neurons, at least one, of an MLP with ``factor`` times the weights and biases of a linear layer.

    384 for 768 x 768.
    """
    return max(1, round(factor * (d_in * d_out + d_out) / (d_in + d_out + 1)))


@dataclass(frozen=True)
class SparsifyConfig(TrainingConfig):
    """Fine-tuning that enforces activation sparsity in the dense feed-forward layers."""

    penalty: Literal["hoyer", "l1"]
    weight: Weight
    ramp: Literal["none", "linear", "linear_warmup"]
    balance_weight: Weight


@dataclass(frozen=True)
class ClusterConfig:
    """Splitting dense layers into experts."""

    expert_size: Width
    restarts: Count
    max_iterations: Rounds


@dataclass(frozen=True)
class RouterConfig(TrainingConfig):
    """Training of routers, which predict the norm of each expert's output."""

    width: Width
