"""The training loop, its optimiser, and the stages that train a network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from planer.config.bounds import Batch, Length, Memory, Positive, Share, Steps, StepsOrNone, Weight
from planer.parsing import Range


@dataclass(frozen=True)
class OptimizerConfig:
    """One optimiser and its learning-rate schedule."""

    name: Literal["lamb", "adamw"]
    lr: Positive
    lr_min: Weight
    warmup_steps: StepsOrNone
    betas: tuple[Share, Share]
    eps: Positive
    weight_decay: Weight
    clip: Weight


@dataclass(frozen=True)
class LoopConfig:
    """What the training loop needs in every stage."""

    batch: Batch
    steps: Steps
    optimizer: OptimizerConfig
    log_steps: Steps
    checkpoint_steps: Steps


@dataclass(frozen=True)
class TrainingConfig(LoopConfig):
    """A stage that reads one long text with a memory."""

    tgt_len: Length
    mem_len: Memory


@dataclass(frozen=True)
class RetrainConfig(TrainingConfig):
    """Phase 2: training the chosen network."""

    balance_weight: Weight
    eval_steps: Steps


@dataclass(frozen=True)
class TeacherConfig:
    """Keys of the section distill that a file of the teacher's logits depends on."""

    batch: Batch
    steps: Steps
    tgt_len: Length
    mem_len: Memory


@dataclass(frozen=True)
class DistillConfig(RetrainConfig):
    """Training of a network that starts from the baseline and has the baseline as its teacher."""

    weight: Annotated[float, Range(0, 1)]
    temperature: Positive
    expert_noise: Share
    cache_gb: Annotated[float, Range(0, 1_000_000)]

    def cache_bytes(self, vocab_size: int) -> int:
        """Size of the teacher's logits for all steps, in half precision."""
        return 2 * self.steps * self.batch * self.tgt_len * vocab_size
