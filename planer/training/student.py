"""The recipe of every network but the baseline: it starts from the trained baseline and learns from it.

    Loss = (1 - w) CE + w T^2 KL(baseline || student) + balance_weight * balance

Which is the better start and the better teacher for networks that are trained briefly was measured on the demo: both
together gained ten times more than the choice of the network.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from planer.architecture import Architecture
from planer.config import DistillConfig, derive_seed
from planer.model import LanguageModel
from planer.training.checkpoint import Checkpoint
from planer.training.distillation import Distillation
from planer.training.parent_start import Parent, start_from_parent
from planer.training.retrain import LanguageModelling, retrain
from planer.training.teacher import CachedTeacher, LiveTeacher, Teacher


class Students:
    """Trains networks as students of one parent, all with the same text, seed and teacher."""

    def __init__(
        self,
        parent: LanguageModel,
        config: DistillConfig,
        train_tokens: np.ndarray,
        valid_tokens: np.ndarray,
        *,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
        cache: str | Path | None = None,
        taught: bool = True,
    ):
        """cache: the teacher's logits (teacher.write_cache); without, the parent runs beside the student.  taught:
        whether there is a teacher at all.  Raises UserError when the cache is damaged or of another training."""
        self.parent = Parent(parent.to(device), train_tokens, config)
        self.config, self.seed = config, seed
        self._texts = train_tokens, valid_tokens
        self._runtime = device, dtype
        self._taught = taught and config.weight > 0
        self._cached: Teacher | None = None
        if cache and self._taught:
            shape = (config.steps, config.batch * config.tgt_len, parent.architecture.vocab_size)
            self._cached = CachedTeacher(cache, *shape)

    def start(self, model: LanguageModel) -> None:
        """Overwrite the weights of an initialised model with those of the parent."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "retrain", "experts"))
        start_from_parent(model, self.parent, self.config.expert_noise, generator)

    def train(
        self,
        network: Architecture,
        checkpoint: Checkpoint,
        on_row: Callable[[dict], None] = lambda row: None,
        until: int | None = None,
    ) -> tuple[LanguageModel, pd.DataFrame, dict]:
        """Train a network to the end, or to the step ``until``, from its start or its checkpoint; returns what
        ``retrain`` does."""
        return retrain(
            network,
            *self._texts,
            self.config,
            self.seed,
            *self._runtime,
            checkpoint,
            on_row,
            start=self.start,
            objective=self._objective(),
            until=until,
        )

    def _objective(self) -> Callable[..., LanguageModelling]:
        if not self._taught:
            return LanguageModelling
        teacher = self._cached or LiveTeacher(self.parent.model, self.config.mem_len)
        return partial(Distillation, teacher=teacher, weight=self.config.weight, temperature=self.config.temperature)
