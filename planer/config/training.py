"""What trains a network: the loop, its optimiser, and the stages that only train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from planer.config.bounds import Batch, Length, Memory, Positive, Share, Steps, StepsOrNone, Weight
from planer.parsing import Range


@dataclass(frozen=True)
class OptimizerConfig:
    """One optimiser and its learning-rate schedule."""

    name: Literal["lamb", "adamw"]
    """LAMB as in NVIDIA's JITLamb (clamped weight norm, no bias correction), or AdamW."""
    lr: Positive
    """Peak learning rate."""
    lr_min: Weight
    """Learning rate at the last step of the cosine."""
    warmup_steps: StepsOrNone
    """Linear warm-up."""
    betas: tuple[Share, Share]
    """Decay of the two moments."""
    eps: Positive
    """Added to the root of the second moment."""
    weight_decay: Weight
    """Decoupled weight decay."""
    clip: Weight
    """Largest global gradient norm; 0 switches clipping off."""


@dataclass(frozen=True)
class TrainingConfig:
    """What the one training loop needs, whatever it trains."""

    batch: Batch
    """Streams read side by side."""
    tgt_len: Length
    """Tokens per stream and step."""
    mem_len: Memory
    """Remembered positions."""
    steps: Steps
    """Optimiser steps."""
    optimizer: OptimizerConfig
    log_steps: Steps
    """Steps averaged into one row of history."""
    checkpoint_steps: Steps
    """Steps between checkpoints."""


@dataclass(frozen=True)
class RetrainConfig(TrainingConfig):
    """Phase 2: training the chosen network."""

    balance_weight: Weight
    """lambda of the Switch load-balancing loss."""
    eval_steps: Steps
    """Steps between validations; the last step is always validated."""


@dataclass(frozen=True)
class DistillConfig(RetrainConfig):
    """Training of a network that starts from the baseline and has the baseline as its teacher."""

    weight: Annotated[float, Range(0, 1)]
    """w: share of the divergence from the teacher in the loss; the cross-entropy has the rest."""
    temperature: Positive
    """T: both networks' logits are divided by it where they are compared."""
    expert_noise: Share
    """Noise on the copies that a mixture of experts starts with, over the standard deviation of the weights."""
    cache_gb: Annotated[float, Range(0, 1_000_000)]
    """Largest file of the teacher's logits; above, the teacher runs beside each student."""
