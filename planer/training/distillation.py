"""Knowledge distillation: a trained network as a teacher, in addition to the text (Hinton et al., arXiv 1503.02531).

    Loss = (1 - w) CE + w T^2 KL(softmax(teacher / T) || softmax(student / T)) + balance_weight * balance

T^2 keeps the size of the second term's gradient when T changes.  Letters in shapes: n rows (tokens), V vocabulary.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from planer.tasks.causal_lm import Batch
from planer.tasks.task import MAIN, Metrics, Result, RowScore
from planer.training.teacher import Teacher
from planer.training.terms import Term


class Distillation(Term):
    """Divergence from a teacher, which replaces a share of the task's loss.

    The history gets the KL term, in nats per token.
    """

    def __init__(
        self, teacher: Teacher, weight: float, temperature: float, group: str = MAIN, metric: str = "divergence"
    ):
        """weight, temperature: w and T of the loss.  metric: the KL term's name in the history."""
        self.teacher, self.share, self.temperature = teacher, weight, temperature
        self.group, self.metric = group, metric

    def row_score(self, batch: Batch, step: int) -> RowScore:
        return RowScore(self.metric, self.teacher.rows(step, batch.inputs, batch.fresh), self._divergence)

    def _divergence(self, logits: Tensor, rows: Tensor) -> Tensor:
        """KL of every row [n], from the student's logits [n, V] and the teacher's rows [n, ...]."""
        sides = (logits, self.teacher.logits(rows))
        student, target = ((side / self.temperature).log_softmax(-1) for side in sides)
        return F.kl_div(student, target, reduction="none", log_target=True).sum(-1)

    def __call__(self, result: Result, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        divergence = result.row_means[self.metric]
        return self.share * self.temperature**2 * divergence, {self.metric: divergence}

    def state(self) -> dict[str, Tensor]:
        """The teacher's memory."""
        return self.teacher.state()

    def restore(self, tensors: dict[str, Tensor]) -> None:
        self.teacher.restore(tensors)
