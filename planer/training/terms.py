"""Terms of a training loss: (output, batch, step) -> (loss, metrics).

One term is the prediction.  It says what the forward pass makes of the hidden states, and its loss comes first.  The
others add to it.

Letters in shapes: B sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import NamedTuple

from torch import Tensor

from planer.models import LanguageModel

Metrics = dict[str, Tensor | float]


class Batch(NamedTuple):
    """A segment of the training text and the tokens that follow each of its tokens, both [B, T]."""

    inputs: Tensor
    targets: Tensor


class Term:
    """A part of a training loss.  Steps count from 0."""

    def __call__(self, output: Tensor, batch: Batch, step: int) -> tuple[Tensor | float, Metrics]:
        """The loss to add, and metrics for the history.  output: what the forward pass returned."""
        raise NotImplementedError

    def during_step(self) -> AbstractContextManager:
        """Around the forward pass and the loss of a training step."""
        return nullcontext()

    def during_validation(self) -> AbstractContextManager:
        """Around a validation."""
        return nullcontext()

    def state(self) -> dict[str, Tensor]:
        """What the next step depends on."""
        return {}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Inverse of state; other tensors are ignored."""


class Prediction(Term):
    """The term that says what the forward pass computes from the hidden states."""

    def score(self, batch: Batch, step: int) -> Callable[[Tensor], Tensor]:
        """From hidden states [B, T, D] to what ``__call__`` gets as output."""
        raise NotImplementedError


class CrossEntropy(Prediction):
    """Mean negative log-likelihood of the text, ``nll`` in the history."""

    def __init__(self, model: LanguageModel):
        self.model = model

    def score(self, batch: Batch, step: int) -> Callable[[Tensor], Tensor]:
        """See Prediction."""
        return partial(self.model.nll, targets=batch.targets)

    def __call__(self, output: Tensor, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        """See Term."""
        nll = output.mean()
        return nll, {"nll": nll}


class Balance(Term):
    """The load-balancing loss of mixtures of experts, times a weight.

    The history gets ``balance`` and ``load_<block>_<expert>``, the share of the assignments; blocks count all positions
    of the network.
    """

    def __init__(self, model: LanguageModel, weight: float):
        self.model, self.weight = model, weight
        self._positions = [i for i, spec in enumerate(model.architecture.blocks) if spec.routes]

    def __call__(self, output: Tensor, batch: Batch, step: int) -> tuple[Tensor | float, Metrics]:
        """See Term."""
        if not self._positions:
            return 0.0, {}
        balance = self.model.balance_loss()
        loads = zip(self._positions, self.model.moe_blocks(), strict=True)
        shares = {f"load_{position}": moe.load / moe.load.sum() for position, moe in loads}
        return self.weight * balance, {"balance": balance} | shares
