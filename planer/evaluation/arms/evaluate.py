"""eval.json of an arm: a pretrained network that skips work, beside the dense one, in quality, FLOPs and time."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from planer.conversion.dynamic import keep_break_even
from planer.conversion.sites import feed_forward_sites
from planer.evaluation.arms.break_even import break_even
from planer.evaluation.arms.choice import choose
from planer.evaluation.arms.points import Point, bound_points, calibrate_norms, first_rule
from planer.evaluation.arms.summary import same
from planer.evaluation.arms.sweep import Reference, score, sweep
from planer.evaluation.arms.timing import time_arm
from planer.git import git_commit
from planer.runtime import device_name
from planer.tasks.metrics import METRICS
from planer.tasks.pretrained_task import PretrainedTask

if TYPE_CHECKING:
    from planer.config.pretrained import ArmEvaluateConfig


@dataclass(frozen=True)
class Arm:
    """What is evaluated."""

    experiment: str
    variant: str
    method: str
    """``dense``, ``experts`` or ``threshold``."""
    model: nn.Module
    """In eval mode on the task's device."""
    points: Sequence[Point]
    """The first one skips nothing.  Empty for ``dense``."""
    reference: str = "dense"
    """The dense variant that was trained as long, which the arm is compared with."""


def evaluate_arm(arm: Arm, dense: nn.Module, task: PretrainedTask, config: ArmEvaluateConfig) -> dict:
    """Evaluate one arm; the result is valid against planer/schemas/arm.schema.json.

    dense: the network of the arm's reference, in eval mode on the task's device; its layers are not converted.
    task: with all splits; rows are chosen and compared by the first of its metrics.
    Leaves both networks' weights in the runtime's dtype.
    """
    started, headline = time.perf_counter(), task.metrics[0]
    metric, reference = METRICS[headline], Reference.of(dense, task)
    known = {
        "valid": reference.measures(score(dense, task, "valid", "reference, valid")[0]),
        "test": reference.measures(reference.dense),
    }
    rows = list(sweep(arm.model, task, arm.points, reference))
    whole = rows[0] if rows else _dense_row(arm.model, task, reference)
    chosen = choose(rows, headline, known["valid"][headline], metric.better, config.tolerance)
    shown = ("all", first_rule(arm.points))
    timed = [point for point in arm.points if point.selector in shown or same(vars(point), chosen)]
    if arm.method == "experts":
        if first_rule(arm.points) == "absolute":
            calibrate_norms(arm.model, task)
        rows += sweep(arm.model, task, bound_points(arm.model, config, arm.points, rows), reference)
    measured = _measure_break_even(arm, dense, task) if arm.method == "experts" else None
    latency = time_arm(dense, arm.model, timed, task, config.batches, config.latency_rounds)
    return {
        "experiment": arm.experiment,
        "variant": arm.variant,
        "method": arm.method,
        "task": {
            "kind": task.facts.kind,
            "metric": headline,
            "title": metric.title,
            "unit": metric.unit,
            "better": metric.better,
            "samples": len(reference.lengths),
            "tokens": sum(reference.lengths),
        },
        "tolerance": config.tolerance,
        "network": _network(dense, arm),
        "flops": reference.per_token,
        "reference": {"variant": arm.reference, **known},
        "quality": {split: whole[split] for split in known},
        "difference": whole["difference"],
        "rows": rows,
        "chosen": chosen and {key: chosen[key] for key in ("selector", "value")},
        "break_even": measured,
        "latency": latency,
        "provenance": _provenance(task, time.perf_counter() - started),
    }


def _dense_row(model: nn.Module, task: PretrainedTask, reference: Reference) -> dict:
    """What a row has of a network that skips nothing."""
    scores, _ = score(model, task, "test", "test")
    return {
        "valid": reference.measures(score(model, task, "valid", "valid")[0]),
        "test": reference.measures(scores),
        "difference": reference.difference(scores),
    }


def _measure_break_even(arm: Arm, dense: nn.Module, task: PretrainedTask) -> float:
    """The share of experts up to which selecting saves time; the arm's layers keep to it."""
    networks = (network.to(task.runtime.dtype) for network in (arm.model, dense))
    measured = break_even(*networks, task.runtime.device, task.runtime.derive("break_even"))
    keep_break_even(arm.model, measured)
    return measured


def _network(dense: nn.Module, arm: Arm) -> dict:
    sites = feed_forward_sites(dense)
    return {
        "model_type": dense.config.model_type,
        "activation": sites[0].activation,
        "params": sum(weight.numel() for weight in dense.parameters()),
        "layers": len(sites),
        "d_model": sites[0].d_model,
        "d_inner": sites[0].d_inner,
        "gated": sites[0].gated,
        "units": arm.points[0].units if arm.points else None,
    }


def _provenance(task: PretrainedTask, seconds: float) -> dict:
    runtime = task.runtime
    return {
        "git_commit": git_commit(),
        "device": device_name(runtime.device),
        "dtype": str(runtime.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "seed": runtime.seed,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "seconds": seconds,
    }
