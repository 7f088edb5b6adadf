"""The one training loop: every stage that trains brings a task, terms of the loss and optimisers, and calls fit().

The loop owns what all stages share: gradients, clipping, learning rates, optimiser steps, the history table,
progress, checkpoints, resuming, and stopping on a signal or on a loss that is no number.  It does not know what a batch
holds.  On the CPU a run that was killed and resumed ends with the same bits as one that was not.
"""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor, nn

from planer.config import LoopConfig, OptimizerConfig
from planer.errors import UserError
from planer.progress import Progress
from planer.runtime import Runtime, reproducible
from planer.tasks.task import MAIN, Metrics, Task
from planer.training.checkpoint import Checkpoint
from planer.training.loss import StepLoss, subset
from planer.training.schedule import learning_rate
from planer.training.terms import Term

SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
"""Signals after which a training saves and leaves."""


@dataclass(frozen=True)
class StepGroup:
    """An optimiser and the steps that it takes: only its gradients are zeroed, clipped and applied in them."""

    optimizer: torch.optim.Optimizer
    config: OptimizerConfig
    steps: int
    """In the whole run; its cosine ends there."""


@dataclass(frozen=True)
class Record:
    """Where a training resumes from and saves to, who hears of its rows, and where it stops."""

    checkpoint: Checkpoint
    on_row: Callable[[dict], None] = lambda row: None
    """Called with each new row of the history, for a live mirror; a resumed run repeats those after its checkpoint."""
    until: int | None = None
    """Stop after this step and leave the checkpoint there.  A later call that goes on from it ends with the same bits
    as one call without."""


def fit(
    model: nn.Module,
    task: Task,
    terms: Sequence[Term],
    optimizers: Mapping[str, StepGroup],
    runtime: Runtime,
    config: LoopConfig,
    record: Record,
) -> tuple[pd.DataFrame, dict[str, float]]:
    """Train a model to its last step or until the task has converged, from the checkpoint if there is one.

    model: on the runtime's device, in the mode that it is trained in.  Its whole state_dict is checkpointed, frozen
    parameters and buffers included.  terms: what is added to the task's loss.  optimizers: by the names that
    ``task.group`` gives.  config: has log_steps and checkpoint_steps.

    Returns the history, and the speed: steps, tokens, seconds, tokens_per_second, over all resumed parts.
    The history has a row every log_steps: ``step`` (steps done), ``loss``, ``lr`` and ``grad_norm`` (before clipping,
    and only when clipping) with the prefix ``<group>_`` for other groups than ``weights``, and the metrics of task and
    terms, averaged over the steps that reported them.  Wall-clock time stays out of the history, which is the same to
    the last bit for the same seed.

    The last step is checkpointed too: the caller deletes the checkpoint when its outputs are written.  SIGTERM, SIGHUP
    (a closed terminal) and SIGINT (Ctrl-C) save after the running step and leave by SystemExit(143), SystemExit(129)
    and KeyboardInterrupt.  Raises UserError when the loss or a weight stops being finite (the last checkpoint stays)
    and when the checkpoint cannot be written.
    """
    run = _Run(StepLoss(model, task, terms, runtime), optimizers, record.checkpoint)
    total = sum(group.steps for group in optimizers.values())
    if (loaded := record.checkpoint.load()) is not None:
        run.restore(*loaded)
        print(f"{task.name}: resuming at step {run.step}/{total}", file=sys.stderr, flush=True)
    began, seconds_before = time.monotonic(), run.seconds
    last = min(total, record.until or total)

    with reproducible(runtime.device), _signals() as came, Progress(last, task.name, start=run.step) as bar:
        while run.step < last and not task.converged:
            metrics = run.train_step()
            log_now = run.step % config.log_steps == 0 or run.step == total
            if log_now or runtime.device.type == "cpu":  # elsewhere every look at a loss waits for the device
                run.check_losses()
            row = run.take_means() if log_now else {}
            row |= task.end_of_step(model, run.step - 1, metrics) or {}
            if row:
                record.on_row(run.add_row(row))
            run.seconds = seconds_before + time.monotonic() - began
            stopping = bool(came)
            if run.step % config.checkpoint_steps == 0 or run.step == last or task.converged or stopping:
                run.save()
            bar.advance(**run.shown)
            if stopping:
                raise KeyboardInterrupt if came[0] == signal.SIGINT else SystemExit(128 + came[0])
    return run.history(), run.speed()


class _Run:
    """Where a run stands: everything that changes from step to step, and how to save and restore it."""

    def __init__(self, loss: StepLoss, optimizers: Mapping[str, StepGroup], checkpoint: Checkpoint) -> None:
        self.loss, self.optimizers, self.checkpoint = loss, optimizers, checkpoint
        self.step = 0
        self.taken = dict.fromkeys(optimizers, 0)
        self.seconds = 0.0
        self.means = _Means()
        self.rows: list[dict] = []
        self.shown: dict[str, float] = {}
        self._lr = math.nan
        self._unchecked: list[tuple[int, float, Tensor]] = []

    def train_step(self) -> Metrics:
        """One step of one optimiser; its metrics."""
        name = self.loss.task.group(self.step)
        optimizer, config = self.optimizers[name].optimizer, self.optimizers[name].config
        optimizer.zero_grad(set_to_none=True)
        loss, metrics = self.loss.backward(self.step)
        self.taken[name] += 1
        self._lr = lr = self._learning_rate(name)
        self.means.add({f"{_prefix(name)}loss": loss})
        if config.clip:
            params = [param for group in optimizer.param_groups for param in group["params"]]
            self.means.add({f"{_prefix(name)}grad_norm": nn.utils.clip_grad_norm_(params, config.clip)})
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        self.means.add(metrics)
        self.step += 1
        self._unchecked.append((self.step, lr, loss))
        return metrics

    def _learning_rate(self, name: str) -> float:
        """Of the last step that this optimiser took."""
        group = self.optimizers[name]
        return learning_rate(self.taken[name], group.config, group.steps)

    def check_losses(self) -> None:
        """Stop at the first loss since the last check that is no number.  One wait for the device."""
        if not self._unchecked:
            return
        values = torch.stack([loss.double() for _, _, loss in self._unchecked]).tolist()
        for (step, lr, _), value in zip(self._unchecked, values, strict=True):
            if not math.isfinite(value):
                raise UserError(f"{self.loss.task.name}: loss is {value} at step {step} {self._advice(lr)}")
        self.shown = {"loss": values[-1]}
        self._unchecked.clear()

    def _check_weights(self) -> None:
        """Stop before a checkpoint holds weights that are no numbers: a finite loss can have infinite gradients."""
        for name, tensor in self.loss.model.state_dict().items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                advice = self._advice(self._lr)
                raise UserError(f"{self.loss.task.name}: {name} is not finite after step {self.step} {advice}")

    def _advice(self, lr: float) -> str:
        path = self.checkpoint.path
        kept = f"; the last good checkpoint is kept at {path}" if path.exists() else ""
        return f"(learning rate {lr:.3g}): lower the optimizer's lr or clip, or raise its warmup_steps{kept}"

    def save(self) -> None:
        """Write the checkpoint.  Raises UserError where a loss or a weight is no number."""
        self.check_losses()
        self._check_weights()
        self.checkpoint.save(*self._state())

    def speed(self) -> dict[str, float]:
        tokens, seconds = self.loss.counted, self.seconds
        return {"steps": self.step, "tokens": tokens, "seconds": seconds, "tokens_per_second": tokens / seconds}

    def take_means(self) -> dict[str, float]:
        """Metrics averaged since the last row, beside each optimiser's learning rate."""
        means = self.means.take()
        row = {}
        for name in self.optimizers:
            prefix = _prefix(name)
            if f"{prefix}loss" in means:
                row[f"{prefix}loss"] = means.pop(f"{prefix}loss")
                row[f"{prefix}lr"] = self._learning_rate(name)
        return row | means

    def add_row(self, values: dict[str, float]) -> dict[str, float]:
        """Append a row of history and give it back."""
        self.rows.append({"step": self.step, **values})
        return self.rows[-1]

    def history(self) -> pd.DataFrame:
        """The rows as a table: step as int64, all else as float64, columns in the order of their first appearance."""
        columns = list(dict.fromkeys(name for row in self.rows for name in row)) or ["step"]
        table = pd.DataFrame(self.rows, columns=columns).astype("float64")
        return table.astype({"step": "int64"})

    def _state(self) -> tuple[dict[str, Tensor], dict]:
        """Tensors by flattened names, and JSON values."""
        loss_tensors, loss_values = self.loss.state()
        history = self.history()
        tensors = {
            **_prefixed("model", self.loss.model.state_dict()),
            **_prefixed("loss", loss_tensors),
            **_prefixed("means", self.means.sums),
            "history": torch.from_numpy(history.to_numpy(dtype="float64", copy=True)),
            "random.cpu": torch.get_rng_state(),
        }
        if torch.cuda.is_initialized():
            tensors |= {f"random.cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
        for name, group in self.optimizers.items():
            for number, slots in group.optimizer.state_dict()["state"].items():
                tensors |= _prefixed(f"optimizer.{name}.{number}", slots)
        values = {
            "step": self.step,
            "taken": self.taken,
            "seconds": self.seconds,
            "columns": list(history.columns),
            "means": self.means.counts,
            "loss": loss_values,
        }
        return tensors, values

    def restore(self, tensors: dict[str, Tensor], values: dict) -> None:
        """Continue where a checkpoint was saved."""
        self.step, self.taken, self.seconds = values["step"], values["taken"], values["seconds"]
        self.rows = [dict(zip(values["columns"], row, strict=True)) for row in tensors["history"].tolist()]
        sums = {name: tensor.to(self.loss.runtime.device) for name, tensor in subset("means", tensors).items()}
        self.means = _Means({name: sums[name] for name in values["means"]}, values["means"])
        self.loss.model.load_state_dict(subset("model", tensors))
        for name, group in self.optimizers.items():
            slots: dict[int, dict[str, Tensor]] = {}
            for key, tensor in subset(f"optimizer.{name}", tensors).items():
                number, _, slot = key.partition(".")
                slots.setdefault(int(number), {})[slot] = tensor
            group.optimizer.load_state_dict(group.optimizer.state_dict() | {"state": slots})
        self.loss.restore(subset("loss", tensors), values["loss"])
        torch.set_rng_state(tensors["random.cpu"])
        for i in range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0):
            if f"random.cuda.{i}" in tensors:
                torch.cuda.set_rng_state(tensors[f"random.cuda.{i}"], i)


class _Means:
    """Running means of named metrics, summed in float64 where the values are, without waiting for the device."""

    def __init__(self, sums: dict[str, Tensor] | None = None, counts: dict[str, int] | None = None) -> None:
        self.sums = sums or {}
        self.counts = counts or {}

    def add(self, metrics: Metrics) -> None:
        for name, value in metrics.items():
            value = torch.as_tensor(value, dtype=torch.float64).detach()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        """The means since the last call."""
        means: dict[str, float] = {}
        for name, total in self.sums.items():
            mean = (total / self.counts[name]).tolist()
            means |= {f"{name}_{i}": entry for i, entry in enumerate(mean)} if total.dim() else {name: mean}
        self.sums, self.counts = {}, {}
        return means


@contextmanager
def _signals() -> Iterator[list[int]]:
    """SIGNALS that came, instead of ending the process, unless ignored.  They reach the main thread only."""
    came: list[int] = []
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in SIGNALS}
        before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _prefix(name: str) -> str:
    return "" if name == MAIN else f"{name}_"


def _prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}
