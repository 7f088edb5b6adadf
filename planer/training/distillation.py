"""Knowledge distillation: a trained network as a second teacher beside the text (Hinton et al., arXiv 1503.02531).

    Loss = (1 - w) CE + w T^2 KL(softmax(teacher / T) || softmax(student / T)) + balance_weight * balance

T^2 keeps the size of the second term's gradient when T changes.  Letters in shapes: B sequences, T tokens, N = B T
rows, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from planer.models import LanguageModel
from planer.training.teacher import LiveTeacher, Teacher
from planer.training.terms import Batch, Metrics, Prediction

MakePrediction = Callable[[LanguageModel], Prediction]
"""From the model that will be trained, on its device, to what it learns from."""


def distillation_rows(
    model: LanguageModel, teacher: Teacher, temperature: float, hidden: Tensor, taught: Tensor, words: Tensor
) -> Tensor:
    """Negative log-likelihood and divergence from the teacher of each row, [2, N], in nats per token.

    hidden: the student's hidden states [N, D]; taught: the teacher's rows [N, ...]; words: targets [N].
    """

    def score(own: Tensor, rows: Tensor, targets: Tensor) -> Tensor:
        logits, wanted = model.logits(own), teacher.logits(rows)
        student, target = ((side / temperature).log_softmax(-1) for side in (logits, wanted))
        divergence = F.kl_div(student, target, reduction="none", log_target=True).sum(-1)
        return torch.stack((F.cross_entropy(logits, targets, reduction="none"), divergence))

    return model.head.by_rows(model.architecture.vocab_size, score, hidden, taught, words)


def taught_score(
    model: LanguageModel, teacher: Teacher, temperature: float, step: int, inputs: Tensor, targets: Tensor
) -> Callable[[Tensor], Tensor]:
    """What the forward pass of a step makes of the hidden states [B, T, D] of inputs [B, T]: ``distillation_rows``."""

    def score(hidden: Tensor) -> Tensor:
        rows = (hidden.flatten(0, -2), teacher.rows(step, inputs), targets.flatten())
        return distillation_rows(model, teacher, temperature, *rows)

    return score


class Distillation(Prediction):
    """Cross-entropy of the text and divergence from a teacher, weighted.

    The history gets ``divergence``, the KL term in nats per token, beside the ``nll`` of the text.
    """

    def __init__(self, model: LanguageModel, teacher: Teacher, weight: float, temperature: float):
        """weight, temperature: w and T of the loss."""
        self.model, self.teacher, self.weight, self.temperature = model, teacher, weight, temperature

    def score(self, batch: Batch, step: int) -> Callable[[Tensor], Tensor]:
        """See Prediction."""
        return taught_score(self.model, self.teacher, self.temperature, step, *batch)

    def __call__(self, output: Tensor, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        """See Term."""
        nll, divergence = output.mean(dim=1)
        loss = (1 - self.weight) * nll + self.weight * self.temperature**2 * divergence
        return loss, {"nll": nll, "divergence": divergence}

    def state(self) -> dict[str, Tensor]:
        """What the teacher remembers."""
        return self.teacher.state()

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Inverse of state."""
        self.teacher.restore(tensors)


def taught_by(parent: LanguageModel, mem_len: int, weight: float, temperature: float) -> MakePrediction:
    """Distillation from a network that runs beside the student, on the student's device."""

    def make(model: LanguageModel) -> Distillation:
        teacher = LiveTeacher(parent.to(next(model.parameters()).device), mem_len)
        return Distillation(model, teacher, weight, temperature)

    return make
