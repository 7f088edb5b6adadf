"""Knowledge distillation: a trained network as a second teacher beside the text (Hinton et al., arXiv 1503.02531).

    Loss = (1 - w) CE + w T^2 KL(softmax(teacher / T) || softmax(student / T)) + balance_weight * balance

The teacher reads the same segments as the student, with a memory of its own.  T^2 keeps the size of the second term's
gradient when T changes.  Letters in shapes: B sequences, T tokens, N = B T rows, D model widths.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from planer.config import DistillConfig, TrainingConfig
from planer.model import LanguageModel
from planer.training.retrain import LanguageModelling


class Distillation(LanguageModelling):
    """Language modelling whose targets are partly a teacher's.

    The history gets ``divergence``, the KL term in nats per token, beside the ``nll`` of the text.
    """

    def __init__(
        self,
        model: LanguageModel,
        train_tokens: np.ndarray,
        valid_tokens: np.ndarray,
        config: TrainingConfig,
        *,
        teacher: LanguageModel,
        distill: DistillConfig,
        **options,
    ) -> None:
        """teacher: a network with the same vocabulary; it is put on the model's device, never trained and not saved.

        The other arguments are those of LanguageModelling.
        """
        super().__init__(model, train_tokens, valid_tokens, config, **options)
        self.teacher = teacher.to(self.device).eval().requires_grad_(False)
        self.teacher_memory: list[Tensor | None] | None = None
        self.distill = distill

    def prediction_loss(
        self, inputs: Tensor, hidden: Tensor, targets: Tensor
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Cross-entropy of the text and divergence from the teacher, weighted."""
        with torch.no_grad():
            taught, self.teacher_memory = self.teacher(inputs, self.teacher_memory, mem_len=self.config.mem_len)
        rows = (hidden.flatten(0, -2), taught.flatten(0, -2), targets.flatten())
        nll, divergence = (term.mean() for term in self.model.by_rows(self._row_terms, *rows))
        weight, temperature = self.distill.weight, self.distill.temperature
        loss = (1 - weight) * nll + weight * temperature**2 * divergence
        return loss, {"nll": nll, "divergence": divergence}

    def _row_terms(self, own: Tensor, taught: Tensor, words: Tensor) -> Tensor:
        """Negative log-likelihood and divergence of each row, [2, N], from hidden states [N, D] of both networks."""
        logits, wanted = self.model.logits(own), self.teacher.logits(taught)
        student, teacher = ((side / self.distill.temperature).log_softmax(-1) for side in (logits, wanted))
        divergence = F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)
        return torch.stack((F.cross_entropy(logits, words, reduction="none"), divergence))

    def state(self) -> tuple[dict[str, Tensor], dict]:
        """Both memories."""
        tensors, values = super().state()
        taught = {f"teacher_memory.{i}": e for i, e in enumerate(self.teacher_memory or []) if e is not None}
        return tensors | taught, values

    def restore(self, tensors: dict[str, Tensor], values: dict) -> None:
        """Inverse of state."""
        super().restore(tensors, values)
        entries = [tensors.get(f"teacher_memory.{i}") for i in range(len(self.teacher.blocks))]
        self.teacher_memory = [None if entry is None else entry.to(self.device) for entry in entries]
