"""Training a language model: the baseline, and phase 2 of PLANER (arXiv 2208.14580, section 3).

    Loss = CE + balance_weight * mean over mixtures of experts of  E * sum_e f_e p_e      (Switch, arXiv 2101.03961)

It starts from random weights, or from those of a trained network (parent_start.py).  Fine-tuning stages subclass
LanguageModelling and add a term.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from planer.architecture import MoE
from planer.config import TrainingConfig
from planer.data.stream import StreamBatches
from planer.models import LanguageModel
from planer.runtime import autocast
from planer.training.checkpoint import Checkpoint
from planer.training.loop import MAIN, Objective, Turn, fit
from planer.training.optimizer import make_optimizer
from planer.training.validate import VALID_BATCH, mean_nll

VALID_TOKENS = 100_000
"""Validation during training reads this much of the text: a standard error of about 0.005 nats at 1 nat per token."""


class LanguageModelling(Objective):
    """Next-token prediction over one continuous text, with memory carried from step to step and from epoch to epoch.

    The history gets ``nll`` (cross-entropy alone, nats per token), ``balance`` and ``load_<block>_<expert>`` (share of
    the assignments; blocks count all positions of the network) for networks with mixtures of experts, and every
    eval_steps and at the end ``valid_nll`` over the first VALID_TOKENS of the validation text.
    """

    name = "retrain"

    def __init__(
        self,
        model: LanguageModel,
        train_tokens: np.ndarray,
        valid_tokens: np.ndarray,
        config: TrainingConfig,
        *,
        balance_weight: float,
        eval_steps: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """model: on its device already.  train_tokens, valid_tokens: 1-D.  dtype: of matrix products."""
        self.model = model.train()
        self.device = next(model.parameters()).device
        self.dtype = dtype
        self.config = config
        self.balance_weight = balance_weight
        self.eval_steps = eval_steps
        self.batches = StreamBatches(train_tokens, config.batch, config.tgt_len)
        self.valid_tokens = valid_tokens
        self.memory: list[Tensor | None] | None = None
        self.total_steps = config.steps
        optimizer = make_optimizer(model.parameters(), config.optimizer)
        self.turns = {MAIN: Turn(optimizer, config.optimizer, config.steps)}
        self._moe_positions = [i for i, spec in enumerate(model.architecture.blocks) if isinstance(spec, MoE)]

    def loss(self, step: int) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Cross-entropy of one segment, the balance of its experts, and the stage's own term."""
        inputs, targets = (tokens.to(self.device, non_blocking=True) for tokens in self.batches.batch_at(step))
        with autocast(self.device, self.dtype):
            scores, self.memory = self.model(
                inputs, self.memory, mem_len=self.config.mem_len, score=self.score(step, inputs, targets)
            )
            loss, metrics = self.prediction_loss(scores)
        self.tokens += targets.numel()
        if self._moe_positions:
            balance = self.model.balance_loss()
            loss = loss + self.balance_weight * balance
            metrics["balance"] = balance
            for position, moe in zip(self._moe_positions, self.model.moe_blocks(), strict=True):
                metrics[f"load_{position}"] = moe.load / moe.load.sum()
        extra, extra_metrics = self.extra_loss(step)
        return loss + extra, metrics | extra_metrics

    def score(self, step: int, inputs: Tensor, targets: Tensor) -> Callable[[Tensor], Tensor]:
        """What the forward pass makes of the hidden states [B, T, D]: the negative log-likelihood of targets [B, T]."""
        return partial(self.model.nll, targets=targets)

    def prediction_loss(self, scores: Tensor) -> tuple[Tensor, dict[str, Tensor | float]]:
        """The loss of what ``score`` gave, with its metrics: the cross-entropy."""
        nll = scores.mean()
        return nll, {"nll": nll}

    def extra_loss(self, step: int) -> tuple[Tensor | float, dict[str, Tensor | float]]:
        """A term that a subclass adds to the loss, with its metrics; called after the forward pass of the step."""
        return 0.0, {}

    def end_of_step(self, step: int) -> dict[str, float] | None:
        """Validate when it is time."""
        if (step + 1) % self.eval_steps and step + 1 < self.total_steps:
            return None
        return {"valid_nll": self.validate(self.valid_tokens[:VALID_TOKENS])}

    def validate(self, tokens: np.ndarray, description: str = "") -> float:
        """Nats per token with the segment and memory lengths of training (E-train)."""
        lengths = (self.config.tgt_len, self.config.mem_len)
        options = {"device": self.device, "dtype": self.dtype, "description": description}
        return mean_nll(self.model, tokens, VALID_BATCH, *lengths, **options)[0]

    def state(self) -> tuple[dict[str, Tensor], dict]:
        """The memory; the place in the text follows from the step."""
        return {f"memory.{i}": entry for i, entry in enumerate(self.memory or []) if entry is not None}, {}

    def restore(self, tensors: dict[str, Tensor], values: dict) -> None:
        """Inverse of state."""
        entries = [tensors.get(f"memory.{i}") for i in range(len(self.model.blocks))]
        self.memory = [None if entry is None else entry.to(self.device) for entry in entries]


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
