"""The loss of every step of a training: the task's, with the terms of the stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from planer.runtime import Runtime
from planer.tasks.task import Metrics, Task
from planer.training.terms import Term


class StepLoss:
    """From the number of a step to its loss and metrics.  Keeps the memory of a step for the next one of its group."""

    def __init__(self, model: nn.Module, task: Task, terms: Sequence[Term], runtime: Runtime):
        """model: on the runtime's device.  terms: added to the task's loss, in this order."""
        self.model, self.task, self.terms, self.runtime = model, task, terms, runtime
        self.counted = 0
        """Tokens or examples trained on."""
        self._states: dict[str, list[Tensor | None] | None] = {}

    def __call__(self, step: int) -> tuple[Tensor, Metrics]:
        """Loss and metrics of a step's batch as a whole."""
        group = self.task.group(step)
        return self._loss(self.task.batch(step), step, group)

    def backward(self, step: int) -> tuple[Tensor, Metrics]:
        """Add the gradients of a step's loss to those of the parameters; the loss, without its graph, and the metrics.

        A batch in parts gives the results of the whole batch but for rounding: a mean over the batch is the sum of the
        parts' means, times their shares of what it is a mean of.
        """
        group = self.task.group(step)
        parts = self.task.parts(self.task.batch(step))
        if len(parts) == 1:
            loss, metrics = self._loss(parts[0], step, group)
            loss.backward()
            return loss.detach(), metrics
        sources = [self.task, *(term for term in self.terms if term.group == group)]
        shares = torch.stack([_shares(source, parts) for source in sources], dim=1)
        total, means = torch.zeros((), device=self.runtime.device), {}
        for part, its in zip(parts, shares.to(total.device), strict=True):
            loss, metrics = self._loss(part, step, group, its)
            loss.backward()
            total = total + loss.detach()
            means = {name: means.get(name, 0) + value for name, value in metrics.items()}
        return total, means

    def _loss(self, batch: Any, step: int, group: str, shares: Tensor | None = None) -> tuple[Tensor, Metrics]:
        """Of a batch, or of a part of one.  shares: of the part in the means of the task and of each term."""
        terms = [term for term in self.terms if term.group == group]
        wants = tuple(dict.fromkeys(name for term in terms for name in term.wants))
        with self.runtime.autocast():
            scores = [score for term in terms if (score := term.row_score(batch, step)) is not None]
            result = self.task.loss(self.model, batch, self._states.get(group), wants, scores)
        self._states[group] = result.state
        self.counted += result.counted
        loss, metrics = result.loss, result.metrics
        if shares is not None:
            loss, metrics = shares[0] * loss, _times(shares[0], metrics)
        for number, term in enumerate(terms, start=1):
            added, term_metrics = term(result, batch, step)
            if shares is not None:
                added, term_metrics = shares[number] * added, _times(shares[number], term_metrics)
            loss, metrics = (1 - term.share) * loss + added, metrics | term_metrics
        return loss, metrics

    def state(self) -> tuple[dict[str, Tensor], dict]:
        """Tensors and JSON values that the next step depends on."""
        tensors, values = self.task.state()
        tensors = {f"task.{name}": tensor for name, tensor in tensors.items()}
        for group, entries in self._states.items():
            tensors |= {f"state.{group}.{i}": entry for i, entry in enumerate(entries or []) if entry is not None}
        for number, term in enumerate(self.terms):
            tensors |= {f"term.{number}.{name}": tensor for name, tensor in term.state().items()}
        lengths = {group: None if entries is None else len(entries) for group, entries in self._states.items()}
        return tensors, {"task": values, "states": lengths, "counted": self.counted}

    def restore(self, tensors: dict[str, Tensor], values: dict) -> None:
        self.counted = values["counted"]
        known = {name: tensor.to(self.runtime.device) for name, tensor in subset("state", tensors).items()}
        for group, length in values["states"].items():
            self._states[group] = None if length is None else [known.get(f"{group}.{i}") for i in range(length)]
        for number, term in enumerate(self.terms):
            term.restore(subset(f"term.{number}", tensors))
        self.task.restore(subset("task", tensors), values["task"])


def _shares(source: Task | Term, parts: Sequence[Any]) -> Tensor:
    """Of the parts of a batch in a mean over the batch: [parts], on the CPU or the device; 0 where it has no items."""
    items = torch.stack([torch.as_tensor(source.items(part)) for part in parts])
    return items / items.sum().clamp(min=1)


def _times(share: Tensor, metrics: Metrics) -> Metrics:
    return {name: share * torch.as_tensor(value).detach() for name, value in metrics.items()}


def subset(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix and a dot, under the rest of their names."""
    start = f"{prefix}."
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
