"""Tasks of networks in transformers' classes: batches are mappings of tensors, as the networks take them.

Letters in shapes: B samples of a batch, T tokens of a sample, N samples of a split.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from planer.config import LoopConfig
from planer.data.epochs import EpochBatches
from planer.data.task_files import TaskFacts
from planer.progress import progress
from planer.runtime import Runtime
from planer.tasks.metrics import Scores, join, measure
from planer.tasks.task import Metrics, Result, Task

Batch = dict[str, Tensor]
"""What a network takes, by the names of its arguments, and ``labels``."""
EVAL_BATCH = 32
"""Samples scored side by side; the result does not depend on it but for rounding."""


class PretrainedTask(Task):
    """Samples of a task, their loss and measures.  Subclasses implement the methods below that raise."""

    other_metrics: tuple[str, ...]
    """Names in METRICS that are reported beside the headline."""
    eval_batch = EVAL_BATCH

    def __init__(
        self,
        facts: TaskFacts,
        splits: dict[str, dict[str, Tensor]],
        training: LoopConfig | None,
        runtime: Runtime,
        name: str = "training",
        accumulate: int = 1,
    ):
        """splits: tensors by name, see planer/data/task_files.py.  training: None where nothing is trained.
        accumulate: equal parts of a training batch whose gradients are computed one after another and added up.

        Raises UserError when the training split has fewer samples than a batch.
        """
        self.facts, self.splits, self.training, self.runtime, self.name = facts, splits, training, runtime, name
        self.accumulate = accumulate
        if training is not None:
            seed, lengths = runtime.derive(name, "batches"), self.lengths("train")
            self._epochs = EpochBatches(self.size("train"), training.batch, seed, lengths)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names in METRICS, the headline first."""
        return tuple(dict.fromkeys((self.facts.metric, *self.other_metrics)))

    def size(self, split: str) -> int:
        """Samples of a split."""
        return len(self.splits[split]["labels"])

    def is_measurable(self, split: str) -> bool:
        """Whether a split has a token or sample whose prediction is measured."""
        return self.size(split) > 0

    def lengths(self, split: str) -> np.ndarray | None:
        """Tokens of every sample [N]; None where all are of one length."""
        return None

    def collate(self, split: str, samples: np.ndarray) -> Batch:
        """The batch of the samples at these positions, on the CPU."""
        raise NotImplementedError

    def real(self, batch: Batch) -> Tensor:
        """Which tokens of the network are no padding: bool [B, T]."""
        raise NotImplementedError

    def score(self, model: nn.Module, batch: Batch) -> Scores:
        """Scores of every sample of a batch."""
        raise NotImplementedError

    def batch(self, step: int) -> Batch:
        return self.on_device(self.collate("train", self._epochs.at(step)))

    def parts(self, batch: Batch) -> list[Batch]:
        columns = [tensor.chunk(self.accumulate) for tensor in batch.values()]
        return [dict(zip(batch, tensors, strict=True)) for tensors in zip(*columns, strict=True)]

    def items(self, batch: Batch) -> Tensor:
        """See Task: samples of a classification, or tokens that are predicted."""
        return (batch["labels"] >= 0).sum()

    def batches(self, split: str, batch: int = 0) -> Iterator[Batch]:
        """All samples of a split on the device, in a fixed order: the longest last.  batch: eval_batch by default."""
        for samples in self._in_order(split, batch):
            yield self.on_device(self.collate(split, samples))

    @torch.inference_mode()
    def scores(self, model: nn.Module, split: str, description: str = "") -> Scores:
        """Scores of every sample of a split, in the order of the split.

        With a description, progress is shown under it.  Leaves the model in the mode in which it was.
        """
        order = self._in_order(split)
        was_training = model.training
        model.eval()
        try:
            parts = []
            for samples in progress(order, description) if description else order:
                with self.runtime.autocast():
                    parts.append(self.score(model, self.on_device(self.collate(split, samples))))
        finally:
            model.train(was_training)
        return join(parts).take(np.argsort(np.concatenate(order)))

    def evaluate(self, model: nn.Module, split: str, description: str = "") -> dict[str, float]:
        return measure(self.metrics, self.scores(model, split, description))

    def result(self, loss: Tensor, metrics: Metrics, counted: int) -> Result:
        """A result without memory and further outputs."""
        return Result(loss, metrics, counted, None, [], {})

    def _in_order(self, split: str, batch: int = 0) -> list[np.ndarray]:
        lengths, batch = self.lengths(split), batch or self.eval_batch
        order = np.arange(self.size(split)) if lengths is None else np.argsort(lengths, kind="stable")
        return [order[start : start + batch] for start in range(0, len(order), batch)]

    def on_device(self, batch: Batch) -> Batch:
        """The batch on the task's device."""
        return {name: tensor.to(self.runtime.device, non_blocking=True) for name, tensor in batch.items()}
