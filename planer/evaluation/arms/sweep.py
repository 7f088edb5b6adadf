"""Quality and FLOPs of a converted network at its operating points: the rows of an arm's eval.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from planer.conversion.counter import Counter, counting
from planer.conversion.sites import feed_forward_sites
from planer.evaluation.arms.bootstrap import difference
from planer.evaluation.arms.flops import NetworkFlops, network_flops
from planer.evaluation.arms.points import Point
from planer.progress import Progress
from planer.tasks.metrics import Scores, join, measure
from planer.tasks.pretrained_task import PretrainedTask

BINS = 20
"""Of a histogram over executed shares of a layer."""


@torch.inference_mode()
def score(model: nn.Module, task: PretrainedTask, split: str, description: str) -> tuple[Scores, Counter]:
    """Scores of a split in the order of the task's batches, and what converted layers executed on real tokens."""
    parts, number = [], -(-task.size(split) // task.eval_batch)
    with counting(model) as counter, Progress(number, description) as bar:
        for batch in task.batches(split):
            counter.real = task.real(batch)
            with task.runtime.autocast():
                parts.append(task.score(model, batch))
            bar.advance()
    return join(parts), counter


def real_lengths(task: PretrainedTask, split: str) -> list[int]:
    """Real tokens of every sample."""
    return [int(length) for batch in task.batches(split) for length in task.real(batch).sum(1)]


@dataclass(frozen=True)
class Reference:
    """What all rows of an arm are compared with."""

    dense: Scores
    """Of the dense network on the test split."""
    flops: NetworkFlops
    lengths: list[int]
    """Real tokens of every test sample."""
    metrics: tuple[str, ...]
    """Names in METRICS, the headline first."""
    seed: int
    """Of the bootstrap, equal for all rows."""

    @classmethod
    def of(cls, model: nn.Module, task: PretrainedTask) -> Reference:
        """A dense network as reference."""
        scores, _ = score(model, task, "test", "reference, test")
        lengths, seed = real_lengths(task, "test"), task.runtime.derive("bootstrap")
        return cls(scores, network_flops(model), lengths, task.metrics, seed)

    def measures(self, scores: Scores) -> dict[str, float]:
        """Metrics by name, the headline first."""
        return measure(self.metrics, scores)

    def difference(self, scores: Scores) -> dict[str, float]:
        """The headline of test scores less the reference's, with its interval."""
        return difference(self.metrics[0], scores, self.dense, self.seed)

    @property
    def per_token(self) -> dict[str, float]:
        """The dense network's FLOPs per real token, by part."""
        return self.flops.per_token(self.lengths)


def sweep(model: nn.Module, task: PretrainedTask, points: Sequence[Point], reference: Reference) -> Iterator[dict]:
    """Score the network at every point; yield its row of eval.json.  Bounds are scored on the test split only."""
    own = network_flops(model).per_token(reference.lengths)
    for point in points:
        point.apply(model)
        name = f"{point.bound or ''} {point.selector} {point.value:g}".strip()
        scores, counter = score(model, task, "test", f"{name}, test")
        valid = None
        if not point.bound:
            valid = reference.measures(score(model, task, "valid", f"{name}, valid")[0])
        yield {
            "selector": point.selector,
            "value": point.value,
            "bound": point.bound,
            "valid": valid,
            "test": reference.measures(scores),
            "difference": reference.difference(scores),
            **_costs(model, point, counter, own, reference.per_token),
            "layers": [{"layer": n, **_executed(counter, n)} for n in counter.names],
        }


def _costs(
    model: nn.Module, point: Point, counter: Counter, own: Mapping[str, float], dense: Mapping[str, float]
) -> dict[str, float]:
    """FLOPs per real token by what the test split executed, and their ratios to the dense network's.

    own, dense: FLOPs by part of the network, where its layers run densely, and of the dense arm's.
    """
    executed = counter.per_token()
    layers = sum(point.layer_flops(site, executed[site.name]) for site in feed_forward_sites(model))
    network = own["total"] - own["feed_forward"] + layers
    replaced = dense["feed_forward"] + (dense["projections"] - own["projections"])
    return {
        "executed_share": counter.share(),
        "feed_forward_flops": layers,
        "feed_forward_ratio": layers / replaced,
        "network_flops": network,
        "network_ratio": network / dense["total"],
    }


def _executed(counter: Counter, name: str) -> dict:
    """Mean executed parts of a layer, and shares of tokens by executed share in BINS bins; a bin has its upper end."""
    tokens = counter.histogram(name).numpy().astype(np.float64)
    parts = np.arange(len(tokens))
    bins = np.maximum(0, np.ceil(parts * BINS / parts[-1]).astype(int) - 1)
    shares = np.bincount(bins, weights=tokens, minlength=BINS) / tokens.sum()
    return {"mean": float(parts @ tokens / tokens.sum()), "histogram": shares.tolist()}
