"""The one training loop: every stage that trains brings an Objective and calls fit().

The loop owns what all stages share: gradients, clipping, learning rates, optimiser steps, the history table,
progress, checkpoints, resuming, and stopping on a signal or on a loss that is no number.  A stage says what one step
computes.  On the CPU a run that was killed and resumed ends with the same bits as one that was not.
"""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor, nn

from planer.config import OptimizerConfig
from planer.errors import UserError
from planer.progress import Progress
from planer.runtime import reproducible
from planer.training.checkpoint import Checkpoint
from planer.training.schedule import learning_rate

MAIN = "weights"
"""The optimiser whose loss and learning rate are plainly called ``loss`` and ``lr`` in the history."""


@dataclass(frozen=True)
class Turn:
    """One optimiser, its configuration, and how many steps it takes in the whole run (its cosine ends there)."""

    optimizer: torch.optim.Optimizer
    config: OptimizerConfig
    steps: int


class Objective:
    """What a stage brings to fit().  Subclasses set the attributes and implement loss(); the rest has defaults.

    fit() calls, for step = 0 .. total_steps - 1:  turn(step), loss(step), (backward and update), end_of_step(step).
    Steps are counted from 0 here, and as steps done (from 1) in the history.
    """

    name: str = "training"
    """What progress and messages call the stage."""
    model: nn.Module
    """Its whole state_dict is checkpointed, frozen parameters and buffers included."""
    turns: dict[str, Turn]
    """The optimisers by name.  Most stages have one, ``weights``."""
    total_steps: int
    """Steps of all optimisers together."""
    tokens: int = 0
    """Tokens trained on so far, for the reported speed: loss() adds to it, fit() keeps it over a resume."""
    speed: dict[str, float]
    """Set by fit(): steps, tokens, seconds, tokens_per_second, over all resumed parts.  Wall-clock time stays out of
    the history, which is the same to the last bit for the same seed."""

    @property
    def converged(self) -> bool:
        """True ends the training before its last step; must follow from what state() saves."""
        return False

    def turn(self, step: int) -> str:
        """Name of the optimiser that this step drives.  Only its gradients are zeroed, clipped and applied."""
        return MAIN

    def loss(self, step: int) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Forward pass of one step: the scalar to minimise, and metrics for the history.

        Metrics are scalars, or 1-D tensors that become columns <name>_0, <name>_1, ...  A row of history holds their
        mean over the steps that reported them.  Return tensors undigested: .item() would wait for the device each step.
        """
        raise NotImplementedError

    def end_of_step(self, step: int) -> dict[str, float] | None:
        """Called after the update: validation, the end of an epoch.  Numbers returned are merged into the history row
        of this step, or become a row of their own between two logged ones."""
        return None

    def state(self) -> tuple[dict[str, Tensor], dict]:
        """Everything beside model, optimisers and PyTorch's global generators that the next step depends on, as tensors
        and JSON values: memory, own generators (generator.get_state() is a tensor), counters."""
        return {}, {}

    def restore(self, tensors: dict[str, Tensor], values: dict) -> None:
        """Take up what state() gave; the tensors are on the CPU."""


def fit(
    objective: Objective,
    *,
    log_steps: int,
    checkpoint_steps: int,
    checkpoint: Checkpoint,
    on_row: Callable[[dict], None] = lambda row: None,
    until: int | None = None,
) -> pd.DataFrame:
    """Train the objective's model to its last step or until it has converged, from the checkpoint if there is one.

    until: stop after this step and leave the checkpoint there; a later call that goes on from it ends with the same
    bits as one call without.

    Returns the history.
    The history has a row every log_steps: ``step`` (steps done), ``loss``, ``lr`` and ``grad_norm`` (before clipping,
    and only when clipping) with the prefix ``<turn>_`` for other optimisers than ``weights``, and the objective's
    metrics.  on_row gets each new row as a dict, for a live mirror; a resumed run repeats those after its checkpoint.

    The last step is checkpointed too: the caller deletes the checkpoint when its outputs are written.  SIGTERM saves
    after the running step and leaves by SystemExit(143).  Raises UserError when the loss or a weight stops being finite
    (the last checkpoint stays) and when the checkpoint cannot be written.
    """
    device = next(objective.model.parameters()).device
    run = _Run(objective, device)
    loaded = checkpoint.load()
    if loaded is not None:
        run.restore(*loaded)
        print(f"{objective.name}: resuming at step {run.step}/{objective.total_steps}", file=sys.stderr, flush=True)
    began, seconds_before = time.monotonic(), run.seconds
    last = min(objective.total_steps, until or objective.total_steps)

    with reproducible(device), _sigterm() as stop, Progress(last, objective.name, start=run.step) as bar:
        while run.step < last and not objective.converged:
            run.train_step()
            log_now = run.step % log_steps == 0 or run.step == objective.total_steps
            if log_now or device.type == "cpu":  # elsewhere every look at a loss waits for the device
                run.check_losses(checkpoint)
            row = run.take_means() if log_now else {}
            row |= objective.end_of_step(run.step - 1) or {}
            if row:
                on_row(run.add_row(row))
            run.seconds = seconds_before + time.monotonic() - began
            stopping = stop.is_set()
            if run.step % checkpoint_steps == 0 or run.step == last or objective.converged or stopping:
                run.check_losses(checkpoint)
                run.check_weights(checkpoint)
                checkpoint.save(*run.state())
            bar.advance(**run.shown)
            if stopping:
                raise SystemExit(143)

    tokens, seconds = objective.tokens, run.seconds
    objective.speed = {"steps": run.step, "tokens": tokens, "seconds": seconds, "tokens_per_second": tokens / seconds}
    return run.history()


class _Run:
    """Where a run stands: everything that changes from step to step, and how to save and restore it."""

    def __init__(self, objective: Objective, device: torch.device) -> None:
        self.objective = objective
        self.device = device
        self.step = 0
        self.taken = dict.fromkeys(objective.turns, 0)
        self.seconds = 0.0
        self.means = _Means()
        self.rows: list[dict] = []
        self.shown: dict[str, float] = {}
        self._lr = math.nan
        self._unchecked: list[tuple[int, float, Tensor]] = []

    def train_step(self) -> None:
        """One step of one optimiser."""
        name = self.objective.turn(self.step)
        optimizer, config = self.objective.turns[name].optimizer, self.objective.turns[name].config
        optimizer.zero_grad(set_to_none=True)
        loss, metrics = self.objective.loss(self.step)
        loss.backward()
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
        self._unchecked.append((self.step, lr, loss.detach()))

    def _learning_rate(self, name: str) -> float:
        """Of the last step that this optimiser took."""
        turn = self.objective.turns[name]
        return learning_rate(self.taken[name], turn.config, turn.steps)

    def check_losses(self, checkpoint: Checkpoint) -> None:
        """Stop at the first loss since the last check that is no number.  One wait for the device."""
        if not self._unchecked:
            return
        values = torch.stack([loss.double() for _, _, loss in self._unchecked]).tolist()
        for (step, lr, _), value in zip(self._unchecked, values, strict=True):
            if not math.isfinite(value):
                raise UserError(f"{self.objective.name}: loss is {value} at step {step} {_advice(lr, checkpoint)}")
        self.shown = {"loss": values[-1]}
        self._unchecked.clear()

    def check_weights(self, checkpoint: Checkpoint) -> None:
        """Stop before a checkpoint holds weights that are no numbers: a finite loss can have infinite gradients."""
        for name, tensor in self.objective.model.state_dict().items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                advice = _advice(self._lr, checkpoint)
                raise UserError(f"{self.objective.name}: {name} is not finite after step {self.step} {advice}")

    def take_means(self) -> dict[str, float]:
        """Metrics averaged since the last row, beside each optimiser's learning rate."""
        means = self.means.take()
        row = {}
        for name in self.objective.turns:
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

    def state(self) -> tuple[dict[str, Tensor], dict]:
        """Tensors by flattened names, and JSON values."""
        own_tensors, own_values = self.objective.state()
        history = self.history()
        tensors = {
            **_prefixed("model", self.objective.model.state_dict()),
            **_prefixed("objective", own_tensors),
            **_prefixed("means", self.means.sums),
            "history": torch.from_numpy(history.to_numpy(dtype="float64", copy=True)),
            "random.cpu": torch.get_rng_state(),
        }
        if torch.cuda.is_initialized():
            tensors |= {f"random.cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
        for name, turn in self.objective.turns.items():
            for number, slots in turn.optimizer.state_dict()["state"].items():
                tensors |= _prefixed(f"optimizer.{name}.{number}", slots)
        values = {
            "step": self.step,
            "taken": self.taken,
            "tokens": self.objective.tokens,
            "seconds": self.seconds,
            "columns": list(history.columns),
            "means": self.means.counts,
            "objective": own_values,
        }
        return tensors, values

    def restore(self, tensors: dict[str, Tensor], values: dict) -> None:
        """Continue where state() was taken."""
        self.step, self.taken = values["step"], values["taken"]
        self.objective.tokens, self.seconds = values["tokens"], values["seconds"]
        self.rows = [dict(zip(values["columns"], row, strict=True)) for row in tensors["history"].tolist()]
        sums = _subset("means", tensors, self.device)
        self.means = _Means({name: sums[name] for name in values["means"]}, values["means"])
        self.objective.model.load_state_dict(_subset("model", tensors))
        for name, turn in self.objective.turns.items():
            slots: dict[int, dict[str, Tensor]] = {}
            for key, tensor in _subset(f"optimizer.{name}", tensors).items():
                number, _, slot = key.partition(".")
                slots.setdefault(int(number), {})[slot] = tensor
            turn.optimizer.load_state_dict(turn.optimizer.state_dict() | {"state": slots})
        self.objective.restore(_subset("objective", tensors), values["objective"])
        torch.set_rng_state(tensors["random.cpu"])
        for i in range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0):
            if f"random.cuda.{i}" in tensors:
                torch.cuda.set_rng_state(tensors[f"random.cuda.{i}"], i)


class _Means:
    """Running means of named metrics, summed in float64 where the values are, without waiting for the device."""

    def __init__(self, sums: dict[str, Tensor] | None = None, counts: dict[str, int] | None = None) -> None:
        self.sums = sums or {}
        self.counts = counts or {}

    def add(self, metrics: dict[str, Tensor | float]) -> None:
        for name, value in metrics.items():
            value = torch.as_tensor(value, dtype=torch.float64).detach()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        """The means, and start anew."""
        means: dict[str, float] = {}
        for name, total in self.sums.items():
            mean = (total / self.counts[name]).tolist()
            means |= {f"{name}_{i}": entry for i, entry in enumerate(mean)} if total.dim() else {name: mean}
        self.sums, self.counts = {}, {}
        return means


@contextmanager
def _sigterm() -> Iterator[threading.Event]:
    """An event that SIGTERM sets, instead of ending the process.  Signals reach the main thread only."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)


def _prefix(name: str) -> str:
    return "" if name == MAIN else f"{name}_"


def _advice(lr: float, checkpoint: Checkpoint) -> str:
    kept = f"; the last good checkpoint is kept at {checkpoint.path}" if checkpoint.path.exists() else ""
    return f"(learning rate {lr:.3g}): lower the optimizer's lr or clip, or raise its warmup_steps{kept}"


def _prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def _subset(prefix: str, tensors: dict[str, Tensor], device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Inverse of _prefixed."""
    start = f"{prefix}."
    return {name.removeprefix(start): t.to(device) for name, t in tensors.items() if name.startswith(start)}
