"""Terms of a training loss, added to that of the task: (result, batch, step) -> (loss, metrics)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from planer.blocks.block import Wants
from planer.tasks.task import MAIN, Metrics, Result, RowScore


class Term:
    """A part of a training loss.  Steps count from 0."""

    group: str = MAIN
    """The optimizer step group to whose steps it belongs."""
    wants: Wants = ()
    """Further outputs of blocks that it needs."""
    share: float = 0.0
    """Share of the loss before it that it replaces."""

    def row_score(self, batch: Any, step: int) -> RowScore | None:
        """The score per row that it needs from the forward pass, computed from the logits."""
        return None

    def __call__(self, result: Result, batch: Any, step: int) -> tuple[Tensor | float, Metrics]:
        """The loss to add, and metrics for the history.  result: the task's for the batch."""
        raise NotImplementedError

    def items(self, batch: Any) -> int | Tensor:
        """How many tokens or examples its loss is the mean of; see Task.items."""
        raise NotImplementedError

    def state(self) -> dict[str, Tensor]:
        """Tensors that the next step depends on."""
        return {}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Inverse of state."""


class Balance(Term):
    """The mean load-balancing loss of the mixtures of experts, times a weight.

    The history gets ``balance`` and ``load_<block>_<expert>``, the share of the assignments; blocks count all positions
    of the network.
    """

    wants = ("balance", "load")

    def __init__(self, weight: float):
        self.weight = weight

    def __call__(self, result: Result, batch: Any, step: int) -> tuple[Tensor | float, Metrics]:
        mixtures = {position: aux for position, aux in enumerate(result.aux) if "balance" in aux}
        if not mixtures:
            return 0.0, {}
        balance = torch.stack([aux["balance"] for aux in mixtures.values()]).mean()
        shares = {f"load_{position}": aux["load"] / aux["load"].sum() for position, aux in mixtures.items()}
        return self.weight * balance, {"balance": balance} | shares
