"""Metrics of tasks by name, each with its direction and unit.

Letters in shapes: N samples (tokens, texts or images), C labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from planer.errors import UserError
from planer.parsing import show


@dataclass(frozen=True)
class Scores:
    """A network's results for every sample, on the CPU.

    nll: negative log-likelihood of the right answer in nats, [N] float64.  counts: how many tokens nll is the mean of,
    [N].  predicted, labels: of a classification, ids [N].
    """

    nll: np.ndarray
    counts: np.ndarray
    predicted: np.ndarray | None = None
    labels: np.ndarray | None = None

    def take(self, positions: np.ndarray) -> Scores:
        """The scores of the samples at these positions, in this order."""
        return Scores(*(None if values is None else values[positions] for values in vars(self).values()))


def classified(logits: Tensor, labels: Tensor) -> Scores:
    """Scores of samples from logits [N, C] and the ids of their labels [N]; the first of equal logits is predicted."""
    nll = F.cross_entropy(logits.float(), labels, reduction="none").double().numpy(force=True)
    return Scores(nll, np.ones(len(nll)), logits.argmax(-1).numpy(force=True), labels.numpy(force=True))


def join(parts: Sequence[Scores]) -> Scores:
    """The scores of several batches, in their order."""
    columns = ([getattr(part, name) for part in parts] for name in Scores.__dataclass_fields__)
    return Scores(*(None if values[0] is None else np.concatenate(values) for values in columns))


def _nll(scores: Scores) -> float:
    return float(np.average(scores.nll, weights=scores.counts))


def _accuracy(scores: Scores) -> float:
    return float(np.mean(scores.predicted == scores.labels))


def _macro_f1(scores: Scores) -> float:
    """Mean of F1 = 2 hits / (predicted + there) over the labels that are predicted or there."""
    size = 1 + max(scores.predicted.max(), scores.labels.max())
    hits = np.bincount(scores.labels[scores.predicted == scores.labels], minlength=size)
    both = np.bincount(scores.predicted, minlength=size) + np.bincount(scores.labels, minlength=size)
    return float(np.mean(2 * hits[both > 0] / both[both > 0]))


@dataclass(frozen=True)
class Metric:
    """A number that a task is measured by."""

    compute: Callable[[Scores], float]
    better: Literal["lower", "higher"]
    unit: str
    """Empty where it has none: a share of 1."""
    title: str
    """For tables and axes."""
    of_labels: bool = False
    """Whether it needs predictions and labels."""


METRICS = {
    "nll": Metric(_nll, "lower", "nats", "negative log-likelihood"),
    "bpc": Metric(lambda scores: _nll(scores) / math.log(2), "lower", "bits", "bits per character"),
    "ppl": Metric(lambda scores: math.exp(_nll(scores)), "lower", "", "perplexity"),
    "accuracy": Metric(_accuracy, "higher", "", "accuracy", of_labels=True),
    "macro_f1": Metric(_macro_f1, "higher", "", "F1, mean over labels", of_labels=True),
}


def of_text(names: Iterable[str], nll: float) -> dict[str, float]:
    """Metrics by name of a text with this mean negative log-likelihood, in nats per token.  Raises as ``measure``."""
    return measure(names, Scores(np.array([nll]), np.ones(1)))


def measure(names: Iterable[str], scores: Scores) -> dict[str, float]:
    """Metrics by name.

    Raises UserError for an unknown name; ValueError without counted tokens, and for a metric of labels where there
    are none.
    """
    names = list(names)
    for name in names:
        if name not in METRICS:
            raise UserError(f"metric {show(name)} is unknown; allowed: {', '.join(METRICS)}")
        if METRICS[name].of_labels and scores.labels is None:
            raise ValueError(f"{name} needs labels; these are scores of a text")
    if not scores.counts.any():
        raise ValueError("there are no samples with counted tokens to measure")
    return {name: METRICS[name].compute(scores) for name in names}
