"""Predicting the next token of one continuous text.

Letters in shapes: B sequences, T tokens, N = B T rows, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from planer.blocks.block import Wants
from planer.config import TrainingConfig
from planer.config.lengths import VALID_BATCH
from planer.data.stream import StreamBatches
from planer.data.texts import Texts
from planer.models import LanguageModel
from planer.runtime import Runtime
from planer.tasks.metrics import of_text
from planer.tasks.nll import Protocol, Watch, mean_nll
from planer.tasks.task import Metrics, Result, RowScore, Task

VALID_TOKENS = 100_000
"""Tokens of validation during training: a standard error of about 0.005 nats at 1 nat per token."""


class Batch(NamedTuple):
    """A segment of the training text and the tokens that follow each of its tokens, both [B, T]."""

    inputs: Tensor
    targets: Tensor
    fresh: bool = False
    """Whether the text does not continue the batch before, whose memory is then of another text."""


class CausalLM(Task):
    """Next-token prediction, with memory carried from step to step and from epoch to epoch.

    The loss is the mean negative log-likelihood, ``nll`` in the history.  Every eval_steps and at the end the history
    gets ``valid_nll`` over the first VALID_TOKENS of the validation text.
    """

    def __init__(
        self, texts: Texts, config: TrainingConfig, runtime: Runtime, eval_steps: int = 0, name: str = "retrain"
    ):
        """eval_steps: 0 never validates.  name: the stage in progress lines."""
        self.name, self.texts, self.config, self.runtime, self.eval_steps = name, texts, config, runtime, eval_steps
        self.batches = StreamBatches(texts.train, config.batch, config.tgt_len)

    def batch(self, step: int) -> Batch:
        """The next segment of every stream."""
        return Batch(*(part.to(self.runtime.device, non_blocking=True) for part in self.batches.batch_at(step)))

    def loss(
        self,
        model: LanguageModel,
        batch: Batch,
        state: list | None,
        wants: Wants = (),
        scores: Sequence[RowScore] = (),
    ) -> Result:
        score = row_scorer(model, batch.targets, scores) if scores else partial(model.nll, targets=batch.targets)
        known = None if batch.fresh else state
        output = model(batch.inputs, known, score, mem_len=self.config.mem_len, wants=wants)
        nll, *others = output.score.mean(dim=1) if scores else [output.score.mean()]
        means = {score.name: mean for score, mean in zip(scores, others, strict=True)}
        return Result(nll, {"nll": nll}, batch.targets.numel(), output.state, output.aux, means)

    def end_of_step(self, model: LanguageModel, step: int, metrics: Metrics) -> dict[str, float] | None:
        """Validate when it is time."""
        done = step + 1
        if not self.eval_steps or done % self.eval_steps and done < self.config.steps:
            return None
        return {"valid_nll": self._nll(model, self.texts.valid[:VALID_TOKENS])}

    def evaluate(
        self, model: LanguageModel, split: str, description: str = "", watch: Watch | None = None
    ) -> dict[str, float]:
        """nll (nats per token) and bpc (bits) with the segment and memory lengths of training (E-train)."""
        nll = self._nll(model, getattr(self.texts, split), description=description, watch=watch)
        return of_text(("nll", "bpc"), nll)

    def _nll(self, model: LanguageModel, tokens, **options) -> float:
        protocol = Protocol(VALID_BATCH, self.config.tgt_len, self.config.mem_len)
        return mean_nll(model, tokens, protocol, self.runtime, **options)[0]


def row_scorer(model: LanguageModel, targets: Tensor, scores: Sequence[RowScore]) -> Callable[[Tensor], Tensor]:
    """From hidden states [B, T, D] to negative log-likelihoods of targets [B, T] and further scores: [1 + scores, N].

    All are computed from the same logits, in chunks (``Head.by_rows``).
    """

    def score(hidden: Tensor, words: Tensor, *rows: Tensor) -> Tensor:
        logits = model.logits(hidden)
        others = [one.score(logits, its) for one, its in zip(scores, rows, strict=True)]
        return torch.stack((F.cross_entropy(logits, words, reduction="none"), *others))

    def scorer(hidden: Tensor) -> Tensor:
        rows = (hidden.flatten(0, -2), targets.flatten(), *(one.rows for one in scores))
        return model.head.by_rows(model.architecture.vocab_size, score, *rows)

    return scorer
