"""What trains a network: the loop, its optimiser, and the stages that only train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from planer.files import UserError
from planer.parsing import not_negative, positive


@dataclass(frozen=True)
class OptimizerConfig:
    """One optimiser and its learning-rate schedule."""

    name: Literal["lamb", "adamw"]
    """LAMB as in NVIDIA's JITLamb (clamped weight norm, no bias correction), or AdamW."""
    lr: float
    """Peak learning rate."""
    lr_min: float
    """Learning rate at the last step of the cosine."""
    warmup_steps: int
    """Linear warm-up."""
    betas: tuple[float, float]
    """Decay of the two moments."""
    eps: float
    """Added to the root of the second moment."""
    weight_decay: float
    """Decoupled weight decay."""
    clip: float
    """Largest global gradient norm; 0 switches clipping off."""

    def __post_init__(self) -> None:
        positive(self, "lr", "eps")
        not_negative(self, "lr_min", "warmup_steps", "weight_decay", "clip")


@dataclass(frozen=True)
class TrainingConfig:
    """What the one training loop needs, whatever it trains."""

    batch: int
    """Streams read side by side."""
    tgt_len: int
    """Tokens per stream and step."""
    mem_len: int
    """Remembered positions."""
    steps: int
    """Optimiser steps."""
    optimizer: OptimizerConfig
    log_steps: int
    """Steps averaged into one row of history."""
    checkpoint_steps: int
    """Steps between checkpoints."""

    def __post_init__(self) -> None:
        positive(self, "batch", "tgt_len", "steps", "log_steps", "checkpoint_steps")
        not_negative(self, "mem_len")


@dataclass(frozen=True)
class RetrainConfig(TrainingConfig):
    """Phase 2: training the chosen network."""

    balance_weight: float
    """lambda of the Switch load-balancing loss."""
    eval_steps: int
    """Steps between validations; the last step is always validated."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "eval_steps")
        not_negative(self, "balance_weight")


@dataclass(frozen=True)
class DistillConfig:
    """The baseline as a second teacher in the retraining of <variant>-distill."""

    weight: float
    """w: share of the divergence from the teacher in the loss; the cross-entropy has the rest."""
    temperature: float
    """T: both networks' logits are divided by it where they are compared."""

    def __post_init__(self) -> None:
        positive(self, "temperature")
        if not 0 <= self.weight <= 1:
            raise UserError(f"weight is {self.weight}; it must be in [0, 1]")
