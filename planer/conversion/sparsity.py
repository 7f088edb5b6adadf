"""Making the activations of dense feed-forward layers sparse by fine-tuning (D2DMoE, arXiv 2310.04361, section 3.1).

    Loss = L + balance_weight * balance + alpha_t * mean over layers, tokens of H2(a)
    H2(a) = (sum_i |a_i|)^2 / (sum_i a_i^2 + eps)          a: activations of one token after the ReLU

L is the cross-entropy, or with a teacher the loss of planer/training/distillation.py.  All parameters are trained: the
network may move its work to fewer neurons while L holds it in place.
Letters in shapes: B sequences, T tokens, F neurons.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from planer.config import SparsifyConfig, derive_seed
from planer.models import LanguageModel
from planer.runtime import seed_everything
from planer.training.checkpoint import Checkpoint
from planer.training.distillation import MakePrediction
from planer.training.retrain import LanguageModelling, train
from planer.training.terms import Balance, Batch, CrossEntropy, Metrics, Term

EPSILON = 1e-15
"""Keeps a token without any activation at penalty 0 with gradient 0, in single precision (in half it is no number)."""


def square_hoyer(a: Tensor) -> Tensor:
    """Square Hoyer measure of each token: [..., F] to [...], in at least single precision.

    The number of equally strong neurons that a token amounts to: 1 for a single one, F for a constant vector, 0 for
    none; multiplying a by a number changes nothing.
    """
    a = a.to(torch.promote_types(a.dtype, torch.float32))
    return a.abs().sum(-1).square() / (a.square().sum(-1) + EPSILON)


def l1(a: Tensor) -> Tensor:
    """Sum of magnitudes of each token: [..., F] to [...], in at least single precision."""
    return a.to(torch.promote_types(a.dtype, torch.float32)).abs().sum(-1)


PENALTIES: dict[str, Callable[[Tensor], Tensor]] = {"hoyer": square_hoyer, "l1": l1}


def ramp(kind: str, t: int, T: int) -> float:
    """Share of alpha in force at step t of T, counted from 1.

    ``none``: 1.  ``linear``: t / T.  ``linear_warmup``: min(1, t / floor(T / 2)).
    """
    match kind:
        case "none":
            return 1.0
        case "linear":
            return t / T
        case "linear_warmup":
            return min(1.0, t / max(T // 2, 1))
    raise ValueError(f"ramp is {kind!r}; allowed: none, linear, linear_warmup")


class SparsityPenalty(Term):
    """A penalty on the activations of the feed-forward layers.

    The history gets ``penalty`` (mean over tokens and layers, before weighting), ``alpha``, and ``sparsity_<block>``:
    the share of activations that are exactly zero; blocks count all positions of the network.  After a validation
    ``sparsity`` holds the same shares over the text validated, by block.
    """

    def __init__(self, model: LanguageModel, config: SparsifyConfig):
        self.config = config
        self.sparsity: dict[int, float] = {}
        self._positions = [i for i, spec in enumerate(model.architecture.blocks) if spec.splits]
        self._relus = [block.activation for block in model.feed_forward_blocks()]
        self._activations: list[Tensor] = []

    @contextmanager
    def during_step(self) -> Iterator[None]:
        """Keeps the activations [B, T, F] of the forward pass."""
        self._activations = []
        with _on_output(self._relus, lambda layer, a: self._activations.append(a)):
            yield
        self._activations = []

    def __call__(self, output: Tensor, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        """See Term."""
        measure = PENALTIES[self.config.penalty]
        alpha = self.config.weight * ramp(self.config.ramp, step + 1, self.config.steps)
        penalty = torch.stack([measure(a).mean() for a in self._activations]).mean()
        metrics: Metrics = {"penalty": penalty, "alpha": alpha}
        for position, a in zip(self._positions, self._activations, strict=True):
            metrics[f"sparsity_{position}"] = (a == 0).float().mean()
        return alpha * penalty, metrics

    @contextmanager
    def during_validation(self) -> Iterator[None]:
        """Sets ``sparsity``."""
        zeros, counts = [0] * len(self._relus), [0] * len(self._relus)

        def count(layer: int, a: Tensor) -> None:
            zeros[layer] = zeros[layer] + (a == 0).sum()
            counts[layer] += a.numel()

        with _on_output(self._relus, count):
            yield
        self.sparsity = {p: int(z) / n for p, z, n in zip(self._positions, zeros, counts, strict=True)}


@contextmanager
def _on_output(modules: Sequence[nn.Module], see: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Call see(number of the module, its output) in every forward pass."""
    handles = [
        module.register_forward_hook(lambda module, inputs, output, number=number: see(number, output))
        for number, module in enumerate(modules)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def sparsify(
    model: LanguageModel,
    train_tokens: np.ndarray,
    valid_tokens: np.ndarray,
    config: SparsifyConfig,
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
    checkpoint: Checkpoint,
    on_row: Callable[[dict], None] = lambda row: None,
    prediction: MakePrediction = CrossEntropy,
) -> tuple[LanguageModel, pd.DataFrame, dict]:
    """Fine-tune the model, or continue from the checkpoint.

    prediction: what the network learns from beside the penalty; with a teacher ``taught_by``.
    Returns the same model in eval mode, the history, and the metrics of retraining's ``train`` with
    ``converted_layers``, ``valid_nll_before``, and the exact sparsity on the validation text: ``sparsity`` and
    ``sparsity_before`` (means over layers), ``sparsity_<block>``.  A network without feed-forward layers comes back
    as it is; its metrics say so.  The caller deletes the checkpoint when it has written the results.
    """
    if not model.feed_forward_blocks():
        reason = f"{model.architecture.pattern} has no feed-forward layer whose activations could be made sparse"
        return model, pd.DataFrame({"step": pd.Series(dtype="int64")}), {"converted_layers": 0, "reason": reason}
    seed_everything(derive_seed(seed, "sparsify", "dropout"))
    penalty, learned = SparsityPenalty(model.to(device), config), prediction(model)
    training = LanguageModelling(
        model,
        train_tokens,
        valid_tokens,
        config,
        learned,
        [Balance(model, config.balance_weight), penalty],
        eval_steps=config.steps,
        dtype=dtype,
        name="sparsify",
    )
    nll_before = training.validate(valid_tokens)
    before = penalty.sparsity
    history, metrics = train(training, checkpoint, on_row)
    metrics |= {
        "converted_layers": len(before),
        "valid_nll_before": nll_before,
        "sparsity_before": float(np.mean(list(before.values()))),
        "sparsity": float(np.mean(list(penalty.sparsity.values()))),
        **{f"sparsity_{position}": share for position, share in penalty.sparsity.items()},
    }
    return model, history, metrics
