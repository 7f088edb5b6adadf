"""Time of one call of the dense network and of a converted one at its points, measured alternately.

Encoders have one phase, ``forward``.  Decoders have ``prefill``, a whole sequence with the last token's logits, and
``decode``, one more token after the sequence but its last token, with a filled cache.  Inputs are samples of the test
split: routers would treat other inputs differently.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice

import pandas as pd
import torch
from scipy.stats import quantile_test
from torch import nn

from planer.conversion.dynamic import dynamic_layers
from planer.conversion.threshold_layer import threshold_layers
from planer.evaluation.arms.points import Point
from planer.measure import by_round, measure, summary
from planer.paired import CONFIDENCE
from planer.tasks.pretrained_task import Batch, PretrainedTask

WARMUP = 3
"""Untimed rounds before a measurement."""
MAX_SECONDS = 120.0
"""A measurement of one batch and phase stops after this long, at a whole round."""
RANKED = 6
"""Fewest rounds whose extremes enclose the median with a probability of 95 %: 1 - 2 / 2^6."""


def time_arm(
    dense: nn.Module,
    model: nn.Module,
    points: Sequence[Point],
    task: PretrainedTask,
    batches: Sequence[int],
    rounds: int,
) -> list[dict]:
    """Rows of eval.json: the dense network and the converted one at every point, for every batch and phase.

    batches: sequences of a call.  Leaves both networks' weights in the runtime's dtype, in which they are timed.
    """
    dense, model, rows = dense.to(task.runtime.dtype), model.to(task.runtime.dtype), []
    placed = [_at(model, point) for point in points]
    for size in sorted(set(batches)):
        batch = _middle(task, size)
        shape = {"batch": len(batch["labels"]), "tokens": int(task.real(batch).sum(1).max())}
        for phase, call in _phases(dense, task, batch).items():
            candidates = {"dense": partial(call, dense)}
            candidates |= {str(number): partial(call, own) for number, own in enumerate(placed)}
            seed, description = task.runtime.derive("latency", size, phase), f"latency, batch {size}, {phase}"
            device = task.runtime.device
            samples = by_round(measure(candidates, rounds, WARMUP, seed, MAX_SECONDS, device, description))
            rows += [shape | {"phase": phase} | row for row in _rows(samples, points, placed)]
    return rows


def _rows(samples: pd.DataFrame, points: Sequence[Point], placed: Sequence[nn.Module]) -> list[dict]:
    """Latencies from milliseconds by round and candidate."""
    names = [{"selector": "dense", "value": None, "dense_layers": None}]
    for point, own in zip(points, placed, strict=True):
        dense = sum(layer.dense for layer in (*dynamic_layers(own), *threshold_layers(own)))
        names.append({"selector": point.selector, "value": point.value, "dense_layers": dense})
    columns = ["dense", *map(str, range(len(points)))]
    return [
        name | summary(samples[column]) | speed_up(samples["dense"] / samples[column])
        for name, column in zip(names, columns, strict=True)
    ]


def speed_up(ratios: pd.Series) -> dict[str, float | None]:
    """Median of the speed-ups of all rounds, and its interval by ranks where there are RANKED rounds or more."""
    median = statistics.median(ratios)
    if len(ratios) < RANKED:
        return {"speed_up": median, "low": None, "high": None}
    ends = quantile_test(list(ratios), q=median, p=0.5).confidence_interval(CONFIDENCE)
    return {"speed_up": median, "low": float(ends.low), "high": float(ends.high)}


def _middle(task: PretrainedTask, size: int) -> Batch:
    """The batch in the middle of the test split, whose texts are of median length; floating-point inputs in dtype."""
    number = -(-task.size("test") // size)
    batch = next(islice(task.batches("test", size), (number - 1) // 2, None))
    return {
        name: tensor.to(task.runtime.dtype) if tensor.is_floating_point() else tensor for name, tensor in batch.items()
    }


def _phases(dense: nn.Module, task: PretrainedTask, batch: Batch) -> Mapping[str, Callable[[nn.Module], object]]:
    """Calls of a network by phase."""
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    run = torch.inference_mode()(lambda model, inputs: model(**inputs))
    if task.facts.kind != "text":
        return {"forward": lambda model: run(model, inputs)}
    ids = inputs["input_ids"]
    cache = run(dense, {"input_ids": ids[:, :-1], "use_cache": True}).cache
    filled = [dict(vars(layer)) for layer in cache.layers]

    def decode(model: nn.Module) -> None:
        run(model, {"input_ids": ids[:, -1:], "cache": cache, "use_cache": True})
        for layer, state in zip(cache.layers, filled, strict=True):
            vars(layer).update(state)  # the cache of a sliding window cannot be cropped

    return {
        "prefill": lambda model: run(model, {"input_ids": ids, "use_cache": True, "logits_to_keep": 1}),
        "decode": decode,
    }


def _at(model: nn.Module, point: Point) -> nn.Module:
    """The network at a point, with the same weights in memory: no call has to set the point.

    Layers in which leaving out experts or neurons saves no time run densely, as users run them.
    """
    memo = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    own = copy.deepcopy(model, memo)
    point.apply(own)
    for layer in dynamic_layers(own):
        layer.select(layer.selector, fast=True)
    for layer in threshold_layers(own):
        layer.set_theta(layer.theta, layer.density, fast=True)
    return own
