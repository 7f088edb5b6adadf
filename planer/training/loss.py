"""The loss of every step of a training: the task's, with the terms of the stage."""

from __future__ import annotations

from collections.abc import Sequence

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
        group, batch = self.task.group(step), self.task.batch(step)
        terms = [term for term in self.terms if term.group == group]
        wants = tuple(dict.fromkeys(name for term in terms for name in term.wants))
        with self.runtime.autocast():
            scores = [score for term in terms if (score := term.row_score(batch, step)) is not None]
            result = self.task.loss(self.model, batch, self._states.get(group), wants, scores)
        self._states[group] = result.state
        self.counted += result.counted
        loss, metrics = result.loss, result.metrics
        for term in terms:
            added, term_metrics = term(result, batch, step)
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
        """Inverse of state."""
        self.counted = values["counted"]
        known = {name: tensor.to(self.runtime.device) for name, tensor in subset("state", tensors).items()}
        for group, length in values["states"].items():
            self._states[group] = None if length is None else [known.get(f"{group}.{i}") for i in range(length)]
        for number, term in enumerate(self.terms):
            term.restore(subset(f"term.{number}", tensors))
        self.task.restore(subset("task", tensors), values["task"])


def subset(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix and a dot, under the rest of their names."""
    start = f"{prefix}."
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
