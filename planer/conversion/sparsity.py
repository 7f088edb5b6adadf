"""Making the activations of dense feed-forward layers sparse by fine-tuning (D2DMoE, arXiv 2310.04361, section 3.1).

    Loss = L + balance_weight * balance + alpha_t * mean over layers, tokens of H2(a)
             + alpha_t * the same over attention projections that were replaced by MLPs, where there are any
    H2(a) = (sum_i |a_i|)^2 / (sum_i a_i^2 + eps)          a: activations of one token after the ReLU

L is the cross-entropy, or with a teacher the loss of planer/training/distillation.py.  All parameters are trained: the
network may move its work to fewer neurons while L holds it in place.
Letters in shapes: B sequences, T tokens, F neurons.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from planer.blocks.block import of_layers
from planer.config import SparsifyConfig
from planer.conversion.penalties import PENALTIES, ramp, sum_over_groups
from planer.data.texts import Texts
from planer.models import LanguageModel
from planer.models.transformer import Output
from planer.runtime import Runtime
from planer.tasks.causal_lm import CausalLM
from planer.tasks.nll import Watch
from planer.tasks.task import Metrics, Result
from planer.training.loop import Record
from planer.training.retrain import train
from planer.training.terms import Balance, Term


class SparsityPenalty(Term):
    """A penalty on the activations of the feed-forward layers.

    The history gets ``penalty`` (mean over tokens and layers, before weighting), ``alpha``, and ``sparsity_<layer>``:
    the share of activations that are exactly zero; names are as of ``of_layers``.
    """

    wants = ("activations",)

    def __init__(self, config: SparsifyConfig):
        self.config = config

    def __call__(self, result: Result, batch: Any, step: int) -> tuple[Tensor, Metrics]:
        """See Term."""
        measure = PENALTIES[self.config.penalty]
        alpha = self.config.weight * ramp(self.config.ramp, step + 1, self.config.steps)
        activations = of_layers(result.aux, "activations")
        penalty = sum_over_groups((not name.isdigit(), measure(a).mean()) for name, a in activations.items())
        metrics: Metrics = {"penalty": penalty, "alpha": alpha}
        metrics |= {f"sparsity_{name}": (a == 0).float().mean() for name, a in activations.items()}
        return alpha * penalty, metrics


class Sparsity(Watch):
    """Counts the activations that are exactly zero, by layer."""

    wants = ("activations",)

    def __init__(self) -> None:
        self._zeros: dict[str, Tensor | int] = {}
        self._counts: dict[str, int] = {}

    def __call__(self, output: Output) -> None:
        """See Watch."""
        for name, a in of_layers(output.aux, "activations").items():
            self._zeros[name] = self._zeros.get(name, 0) + (a == 0).sum()
            self._counts[name] = self._counts.get(name, 0) + a.numel()

    def shares(self) -> dict[str, float]:
        """Of each layer."""
        return {name: int(zeros) / self._counts[name] for name, zeros in self._zeros.items()}


def sparsify(
    model: LanguageModel,
    texts: Texts,
    config: SparsifyConfig,
    runtime: Runtime,
    record: Record,
    terms: Sequence[Term] = (),
) -> tuple[LanguageModel, pd.DataFrame, dict]:
    """Fine-tune the model, or continue from the checkpoint.

    terms: what the network learns from beside the text and the penalty, such as a teacher.
    Returns the same model in eval mode, the history, and the metrics of retraining's ``train`` with
    ``converted_layers``, ``valid_nll_before``, and the exact sparsity on the validation text: ``sparsity`` and
    ``sparsity_before`` (means over layers), ``sparsity_<layer>``.  A network without feed-forward layers comes back
    as it is; its metrics say so.  The caller deletes the checkpoint when it has written the results.
    """
    if not model.feed_forward_blocks():
        reason = f"{model.architecture.pattern} has no feed-forward layer whose activations could be made sparse"
        return model, pd.DataFrame({"step": pd.Series(dtype="int64")}), {"converted_layers": 0, "reason": reason}
    runtime.seed_everything("sparsify", "dropout")
    model, before, after = model.to(runtime.device), Sparsity(), Sparsity()
    task = CausalLM(texts, config, runtime, config.steps, "sparsify")
    nll_before = task.evaluate(model, "valid", watch=before)["nll"]
    terms = [*terms, Balance(config.balance_weight), SparsityPenalty(config)]
    history, metrics = train(model, task, terms, runtime, record, after)
    metrics |= {
        "converted_layers": len(before.shares()),
        "valid_nll_before": nll_before,
        "sparsity_before": float(np.mean(list(before.shares().values()))),
        "sparsity": float(np.mean(list(after.shares().values()))),
        **{f"sparsity_{name}": share for name, share in after.shares().items()},
    }
    return model, history, metrics
