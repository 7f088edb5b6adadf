"""How a network is trained: from random weights, or from the trained baseline with the baseline as its teacher.

    from random weights   CE + balance_weight * balance
    student               (1 - w) CE + w T^2 KL(baseline || student) + balance_weight * balance

Measured on the demo, starting from the baseline and learning from it gained ten times more than the choice of the
network.  A recipe trains one network after the other with the same text, seed and teacher.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from planer.config import DistillConfig, RetrainConfig, derive_seed
from planer.models import LanguageModel, initialise
from planer.runtime import resolve_device, resolve_dtype, seed_everything
from planer.specs import Architecture
from planer.training.checkpoint import Checkpoint
from planer.training.distillation import Distillation
from planer.training.parent_start import Parent, start_from_parent
from planer.training.retrain import LanguageModelling, train
from planer.training.teacher import CachedTeacher, LiveTeacher, Teacher
from planer.training.terms import Balance, CrossEntropy, Prediction
from planer.training.validate import VALID_BATCH, segment_nll

OnRow = Callable[[dict], None]


class Recipe:
    """Training from random weights."""

    def __init__(
        self,
        config: RetrainConfig,
        train_tokens: np.ndarray,
        valid_tokens: np.ndarray,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
    ):
        """train_tokens, valid_tokens: 1-D.  dtype: of matrix products."""
        self.config, self.seed, self.device, self.dtype = config, seed, device, dtype
        self.train_tokens, self.valid_tokens = train_tokens, valid_tokens

    def start(self, network: Architecture) -> LanguageModel:
        """The model before its first step, on the device."""
        model = LanguageModel(network)
        initialise(model, torch.Generator().manual_seed(derive_seed(self.seed, "retrain", "initialisation")))
        return model.to(self.device)

    def prediction(self, model: LanguageModel) -> Prediction:
        """What a model learns from."""
        return CrossEntropy(model)

    def train(
        self,
        network: Architecture,
        checkpoint: Checkpoint,
        on_row: OnRow = lambda row: None,
        until: int | None = None,
    ) -> tuple[LanguageModel, pd.DataFrame, dict]:
        """Train a network from its start, or from the checkpoint.

        until: the step to stop at, for the beginning of a training that goes on from its checkpoint later.  Returns the
        model in evaluation, the history, and the metrics of training.train.  The caller deletes the checkpoint when it
        has written them.
        """
        model = self.start(network)
        seed_everything(derive_seed(self.seed, "retrain", "dropout"))
        training = LanguageModelling(
            model,
            self.train_tokens,
            self.valid_tokens,
            self.config,
            self.prediction(model),
            [Balance(model, self.config.balance_weight)],
            eval_steps=self.config.eval_steps,
            dtype=self.dtype,
        )
        history, metrics = train(training, checkpoint, on_row, until)
        return model, history, metrics

    def scored(self, model: LanguageModel, text: np.ndarray) -> tuple[Tensor, Tensor]:
        """Losses of a text by segment and the tokens of each, with the lengths of training (validate.segment_nll)."""
        lengths = (VALID_BATCH, self.config.tgt_len, self.config.mem_len)
        return segment_nll(model, text, *lengths, device=self.device, dtype=self.dtype)


class Student(Recipe):
    """Training from a parent's weights, with the parent as the teacher."""

    config: DistillConfig

    def __init__(self, parent: LanguageModel, *recipe, cache: str | Path | None = None, taught: bool = True):
        """recipe: the arguments of Recipe.  cache: the teacher's logits (teacher.write_cache); without, the parent runs
        beside the student.  taught: False trains with cross-entropy alone.  Raises UserError when the cache is damaged
        or belongs to another training."""
        super().__init__(*recipe)
        self.parent = Parent(parent.to(self.device), self.train_tokens, self.config)
        self.taught = taught and self.config.weight > 0
        self._cache: Teacher | None = None
        if cache and self.taught:
            shape = (self.config.steps, self.config.batch * self.config.tgt_len, parent.architecture.vocab_size)
            self._cache = CachedTeacher(cache, *shape)

    def start(self, network: Architecture) -> LanguageModel:
        """See Recipe; from the parent's weights."""
        model = super().start(network)
        noise = torch.Generator().manual_seed(derive_seed(self.seed, "retrain", "experts"))
        start_from_parent(model, self.parent, self.config.expert_noise, noise)
        return model

    def prediction(self, model: LanguageModel) -> Prediction:
        """See Recipe."""
        if not self.taught:
            return CrossEntropy(model)
        teacher = self._cache or LiveTeacher(self.parent.model, self.config.mem_len)
        return Distillation(model, teacher, self.config.weight, self.config.temperature)


def recipe_of(
    config: SimpleNamespace,
    texts: tuple[np.ndarray, np.ndarray],
    seed: int,
    parent: LanguageModel | None,
    *,
    taught: bool,
    cache: str | Path | None = None,
) -> Recipe:
    """How a job trains networks.  config: its sections; texts: for training and for validation; the others: see
    Student.  Without a parent training starts from random weights."""
    device = resolve_device(config.device)
    recipe = (*texts, seed, device, resolve_dtype(config.dtype, device))
    if parent is None:
        return Recipe(config.retrain, *recipe)
    return Student(parent, config.distill, *recipe, cache=cache, taught=taught)
