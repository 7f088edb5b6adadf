"""Training of a network in transformers' classes on its task; sparsification brings a term."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import pandas as pd
from torch import Tensor, nn

from planer.config import LoopConfig
from planer.config.pretrained import FinetuneConfig
from planer.errors import UserError
from planer.runtime import Runtime, reproducible
from planer.tasks.pretrained_task import PretrainedTask
from planer.tasks.task import MAIN
from planer.training.loop import Record, StepGroup, fit
from planer.training.optimizer import make_optimizer
from planer.training.terms import Term

TIMED_STEPS = 2
"""Steps that the time of a training is estimated from, after one that is not timed."""


def finetune(
    model: nn.Module,
    task: PretrainedTask,
    config: FinetuneConfig,
    runtime: Runtime,
    record: Record,
    terms: Sequence[Term] = (),
) -> tuple[pd.DataFrame, dict]:
    """Train all parameters, or go on from the checkpoint, then validate.  Leaves the model in eval mode on the device.

    terms: added to the task's loss.  Weight decay leaves biases and norms alone.
    Returns the history, and the metrics: params, valid_<name> for every metric of the task, and of the training steps,
    tokens (or samples), seconds and tokens_per_second.  With 0 steps the network stays as it is.
    """
    model.to(runtime.device)
    history, speed = pd.DataFrame({"step": pd.Series(dtype="int64")}), {"steps": 0}
    if config.steps:
        runtime.seed_everything(task.name, "dropout")
        optimizer = make_optimizer(model.parameters(), config.optimizer, decay_vectors=False)
        groups = {MAIN: StepGroup(optimizer, config.optimizer, config.steps)}
        history, speed = fit(model.train(), task, terms, groups, runtime, config, record)
    model.eval()
    measures = task.evaluate(model, "valid", f"{task.name}: validation")
    params = sum(weight.numel() for weight in model.parameters())
    return history, {f"valid_{name}": value for name, value in measures.items()} | {"params": params} | speed


def check_hours(
    model: nn.Module, task: PretrainedTask, config: FinetuneConfig, runtime: Runtime, max_hours: float
) -> None:
    """Time a few parts of steps.  Raises UserError when the training would take longer than max_hours at their pace.

    Neither weights nor gradients change; PyTorch's generators do.
    """
    model.to(runtime.device).train()

    def take(step: int) -> Tensor:
        part = task.parts(task.batch(step))[0]
        with runtime.autocast():
            loss = task.loss(model, part, None).loss
        loss.backward()
        model.zero_grad(set_to_none=True)
        return loss

    check_pace(take, task, config, runtime, max_hours)
    model.eval()


def check_pace(
    take: Callable[[int], Tensor], task: PretrainedTask, config: LoopConfig, runtime: Runtime, max_hours: float
) -> None:
    """Raise UserError when config.steps would take longer than max_hours, by the time of a few of them.

    take: computes one part of a step, by its number, and returns a tensor of one element that depends on it.
    """
    seconds = []
    with reproducible(runtime.device):
        for step in range(1 + TIMED_STEPS):
            started = time.perf_counter()
            take(step).item()  # waits for the device
            seconds.append(time.perf_counter() - started)
    hours = config.steps * task.accumulate * min(seconds[1:]) / 3600
    if hours > max_hours:
        raise UserError(
            f"{task.name} would take about {hours:,.1f} hours on this device for {config.steps:,} steps, more than "
            f"max_hours ({max_hours:g}); lower steps or batch, raise max_hours, or use a faster device"
        )
