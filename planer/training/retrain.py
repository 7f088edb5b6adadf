"""Training a language model: the baseline, and phase 2 of PLANER (arXiv 2208.14580, section 3).

    Loss = CE + balance_weight * mean over mixtures of experts of  E * sum_e f_e p_e      (Switch, arXiv 2101.03961)

It starts from random weights, or from those of a trained network (parent_start.py).  Fine-tuning stages bring other
terms (terms.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from planer.config import TrainingConfig
from planer.data.stream import StreamBatches
from planer.models import LanguageModel
from planer.runtime import autocast
from planer.training.checkpoint import Checkpoint
from planer.training.loop import MAIN, Objective, Turn, fit
from planer.training.optimizer import make_optimizer
from planer.training.terms import Batch, Prediction, Term
from planer.training.validate import VALID_BATCH, mean_nll

VALID_TOKENS = 100_000
"""Validation during training reads this much of the text: a standard error of about 0.005 nats at 1 nat per token."""


class LanguageModelling(Objective):
    """Next-token prediction over one continuous text, with memory carried from step to step and from epoch to epoch.

    The history gets the metrics of the terms, and every eval_steps and at the end ``valid_nll`` over the first
    VALID_TOKENS of the validation text.
    """

    def __init__(
        self,
        model: LanguageModel,
        train_tokens: np.ndarray,
        valid_tokens: np.ndarray,
        config: TrainingConfig,
        prediction: Prediction,
        terms: Sequence[Term] = (),
        *,
        eval_steps: int,
        dtype: torch.dtype = torch.float32,
        name: str = "retrain",
    ) -> None:
        """model: on its device already.  train_tokens, valid_tokens: 1-D.  prediction, terms: what the loss is the sum
        of, in this order.  dtype: of matrix products.  name: what progress calls the stage."""
        self.name = name
        self.model = model.train()
        self.device = next(model.parameters()).device
        self.dtype = dtype
        self.config = config
        self.prediction, self.terms = prediction, (prediction, *terms)
        self.eval_steps = eval_steps
        self.batches = StreamBatches(train_tokens, config.batch, config.tgt_len)
        self.valid_tokens = valid_tokens
        self.memory: list[Tensor | None] | None = None
        self.total_steps = config.steps
        optimizer = make_optimizer(model.parameters(), config.optimizer)
        self.turns = {MAIN: Turn(optimizer, config.optimizer, config.steps)}

    def loss(self, step: int) -> tuple[Tensor, dict[str, Tensor | float]]:
        """The terms of one segment."""
        inputs, targets = (tokens.to(self.device, non_blocking=True) for tokens in self.batches.batch_at(step))
        batch, mem_len = Batch(inputs, targets), self.config.mem_len
        with ExitStack() as stack:
            for term in self.terms:
                stack.enter_context(term.during_step())
            with autocast(self.device, self.dtype):
                score = self.prediction.score(batch, step)
                output, self.memory = self.model(inputs, self.memory, mem_len=mem_len, score=score)
                loss, metrics = self.prediction(output, batch, step)
            self.tokens += targets.numel()
            for term in self.terms[1:]:
                more, its_metrics = term(output, batch, step)
                loss, metrics = loss + more, metrics | its_metrics
        return loss, metrics

    def end_of_step(self, step: int) -> dict[str, float] | None:
        """Validate when it is time."""
        if (step + 1) % self.eval_steps and step + 1 < self.total_steps:
            return None
        return {"valid_nll": self.validate(self.valid_tokens[:VALID_TOKENS])}

    def validate(self, tokens: np.ndarray, description: str = "") -> float:
        """Nats per token with the segment and memory lengths of training (E-train)."""
        lengths = (self.config.tgt_len, self.config.mem_len)
        options = {"device": self.device, "dtype": self.dtype, "description": description}
        with ExitStack() as stack:
            for term in self.terms:
                stack.enter_context(term.during_validation())
            return mean_nll(self.model, tokens, VALID_BATCH, *lengths, **options)[0]

    def state(self) -> tuple[dict[str, Tensor], dict]:
        """The memory and what the terms keep; the place in the text follows from the step."""
        tensors = {f"memory.{i}": entry for i, entry in enumerate(self.memory or []) if entry is not None}
        for term in self.terms:
            tensors |= term.state()
        return tensors, {}

    def restore(self, tensors: dict[str, Tensor], values: dict) -> None:
        """Inverse of state."""
        entries = [tensors.get(f"memory.{i}") for i in range(len(self.model.blocks))]
        self.memory = [None if entry is None else entry.to(self.device) for entry in entries]
        for term in self.terms:
            term.restore(tensors)


def train(
    objective: LanguageModelling,
    checkpoint: Checkpoint,
    on_row: Callable[[dict], None] = lambda row: None,
    until: int | None = None,
) -> tuple[pd.DataFrame, dict[str, float]]:
    """Fit, then validate on the whole validation text.  Leaves the model in eval mode.

    until: the step to stop at; before the last one, nothing is validated and the metrics are those of the speed alone.

    Returns the history and the metrics: valid_nll (nats per token), valid_bpc (bits), params, active_params, steps,
    tokens, seconds and tokens_per_second (all of training, over resumes and with its validations).
    """
    config = objective.config
    history = fit(
        objective,
        log_steps=config.log_steps,
        checkpoint_steps=config.checkpoint_steps,
        checkpoint=checkpoint,
        on_row=on_row,
        until=until,
    )
    objective.model.eval()
    if until is not None and until < objective.total_steps:
        return history, dict(objective.speed)
    nll = objective.validate(objective.valid_tokens, f"{objective.name}: validation")
    architecture = objective.model.architecture
    metrics = {
        "valid_nll": nll,
        "valid_bpc": nll / math.log(2),
        "params": architecture.params(),
        "active_params": architecture.active_params(),
        **objective.speed,
    }
    return history, metrics
