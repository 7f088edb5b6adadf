"""The interface of a task: batches, their loss and measures, as the training loop needs them.

Letters in shapes: N rows (tokens, or examples), C classes (words of a vocabulary, or labels).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from planer.blocks.block import Aux, Wants

MAIN = "weights"
"""The optimizer step group whose loss and learning rate are called ``loss`` and ``lr`` in the history."""

Metrics = dict[str, Tensor | float]
"""Scalars, or 1-D tensors that become columns <name>_0, <name>_1, ...  Values stay tensors, because .item()
would wait for the device in each step."""


class RowScore(NamedTuple):
    """A number per row that a term of the loss computes from the logits while they exist."""

    name: str
    rows: Tensor
    """Its inputs of every row, [N, ...]."""
    score: Callable[[Tensor, Tensor], Tensor]
    """From logits [n, C] and some of the rows [n, ...] to [n]."""


@dataclass(frozen=True)
class Result:
    """A task's result for one batch."""

    loss: Tensor
    """The scalar to minimise, without the terms that a stage adds."""
    metrics: Metrics
    counted: int
    """Tokens or examples trained on."""
    state: list[Tensor | None] | None
    """The network's memory for the next batch of the same stream."""
    aux: list[Aux]
    """Further outputs of the blocks, one entry per block."""
    row_means: dict[str, Tensor]
    """Means of the requested row scores, by name."""


class Task:
    """Batches, their loss, and measures.  Subclasses implement batch(), loss() and evaluate(); the rest has defaults.

    The loop calls, for step = 0, 1, ...:  group(step), batch(step), loss(...), (backward and update), end_of_step(...).
    """

    name: str = "training"
    """Name of the stage in progress lines and messages."""

    @property
    def converged(self) -> bool:
        """Whether the training ends before its last step; it must follow from state()."""
        return False

    def group(self, step: int) -> str:
        """Name of the optimizer step group that this step drives."""
        return MAIN

    def batch(self, step: int) -> Any:
        """The batch of a step, on the device."""
        raise NotImplementedError

    def loss(
        self, model: nn.Module, batch: Any, state: list | None, wants: Wants = (), scores: Sequence[RowScore] = ()
    ) -> Result:
        """Forward pass.  state: memory after the last batch of this group.  wants, scores: needed by terms."""
        raise NotImplementedError

    def parts(self, batch: Any) -> list[Any]:
        """A batch in parts whose gradients are computed one after another, to need less memory."""
        return [batch]

    def items(self, batch: Any) -> int | Tensor:
        """How many tokens or examples the loss of a batch is the mean of: parts count by it."""
        raise NotImplementedError

    def evaluate(self, model: nn.Module, split: str) -> dict[str, float]:
        """Measures of the model on a split, by name.  Leaves the model in the mode in which it was."""
        raise NotImplementedError

    def end_of_step(self, model: nn.Module, step: int, metrics: Metrics) -> dict[str, float] | None:
        """Called after the update, with the metrics of the step: validation, the end of an epoch.

        Numbers returned are merged into the history row of this step, or become a row of their own between two logged
        ones."""
        return None

    def state(self) -> tuple[dict[str, Tensor], dict]:
        """Tensors and JSON values that the next step depends on beside model, optimisers, terms and PyTorch's global
        generators: other generators (generator.get_state() is a tensor), counters."""
        return {}, {}

    def restore(self, tensors: dict[str, Tensor], values: dict) -> None:
        """Inverse of state(); the tensors are on the CPU."""
