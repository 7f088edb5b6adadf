"""How a network is trained: from random weights, or from the trained baseline with the baseline as its teacher.

    from random weights   CE + balance_weight * balance
    student               (1 - w) CE + w T^2 KL(baseline || student) + balance_weight * balance

Measured on the demo, starting from the baseline and learning from it gained ten times more than the choice of the
network.  A recipe trains one network after the other with the same text, seed and teacher.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
from torch import Tensor

from planer.config import DistillConfig, RetrainConfig
from planer.config.lengths import VALID_BATCH
from planer.data.texts import Texts
from planer.models import LanguageModel, initialise
from planer.runtime import Runtime
from planer.specs import Architecture
from planer.tasks.causal_lm import CausalLM
from planer.tasks.nll import Protocol, segment_nll
from planer.training.distillation import Distillation
from planer.training.loop import Record
from planer.training.parent_start import Parent, start_from_parent
from planer.training.retrain import train
from planer.training.teacher import CachedTeacher, LiveTeacher, Teacher
from planer.training.terms import Balance, Term


class Recipe:
    """Training from random weights."""

    def __init__(self, config: RetrainConfig, texts: Texts, runtime: Runtime):
        """texts: train and valid are read."""
        self.config, self.texts, self.runtime = config, texts, runtime

    def start(self, network: Architecture) -> LanguageModel:
        """The model before its first step, on the device."""
        model = LanguageModel(network)
        initialise(model, self.runtime.generator("retrain", "initialisation"))
        return model.to(self.runtime.device)

    def terms(self) -> list[Term]:
        """Terms added to the loss of the text."""
        return [Balance(self.config.balance_weight)]

    def train(self, network: Architecture, record: Record) -> tuple[LanguageModel, pd.DataFrame, dict]:
        """Train a network from its start, or from the checkpoint.

        Returns the model in evaluation, the history, and the metrics of training.train.  The caller deletes the
        checkpoint when it has written them.
        """
        model = self.start(network)
        self.runtime.seed_everything("retrain", "dropout")
        task = CausalLM(self.texts, self.config, self.runtime, self.config.eval_steps)
        history, metrics = train(model, task, self.terms(), self.runtime, record)
        return model, history, metrics

    def scored(self, model: LanguageModel, text: np.ndarray) -> tuple[Tensor, Tensor]:
        """Losses of a text by segment and the tokens of each, with the lengths of training (tasks.nll.segment_nll)."""
        return segment_nll(model, text, Protocol(VALID_BATCH, self.config.tgt_len, self.config.mem_len), self.runtime)


class Student(Recipe):
    """Training from a parent's weights, with the parent as the teacher."""

    config: DistillConfig

    def __init__(self, parent: LanguageModel, *recipe, cache: str | Path | None = None, taught: bool = True):
        """recipe: the arguments of Recipe.  cache: the teacher's logits (teacher.write_cache); without, the parent runs
        beside the student.  taught: False trains with cross-entropy alone.  Raises UserError when the cache is damaged
        or belongs to another training."""
        super().__init__(*recipe)
        self.parent = Parent(parent.to(self.runtime.device), self.texts.train, self.config)
        self.taught = taught and self.config.weight > 0
        self._cache: Teacher | None = None
        if cache and self.taught:
            shape = (self.config.steps, self.config.batch * self.config.tgt_len, parent.architecture.vocab_size)
            self._cache = CachedTeacher(cache, *shape)

    def start(self, network: Architecture) -> LanguageModel:
        """See Recipe; from the parent's weights."""
        model = super().start(network)
        start_from_parent(model, self.parent, self.config.expert_noise, self.runtime.generator("retrain", "experts"))
        return model

    def terms(self) -> list[Term]:
        if not self.taught:
            return super().terms()
        teacher = self._cache or LiveTeacher(self.parent.model, self.config.mem_len)
        return [Distillation(teacher, self.config.weight, self.config.temperature), *super().terms()]


def recipe_of(
    config: SimpleNamespace,
    texts: Texts,
    runtime: Runtime,
    parent: LanguageModel | None,
    *,
    taught: bool,
    cache: str | Path | None = None,
) -> Recipe:
    """How a job trains networks.  config: its sections; the others: see Student.  Without a parent training starts from
    random weights."""
    if parent is None:
        return Recipe(config.retrain, texts, runtime)
    return Student(parent, config.distill, texts, runtime, cache=cache, taught=taught)
