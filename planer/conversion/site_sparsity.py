"""Making the activations of a pretrained network's feed-forward layers sparse by fine-tuning.

    Loss = L + alpha_t * mean over layers, tokens of penalty(a)
             + alpha_t * the same over attention projections that were replaced by MLPs, where there are any

What is penalised, by the configuration's ``on`` (z: input of the activation; of a gated layer that of the gate):

    relu        a = relu(z), ReLU in the place of the layer's activation; before the product with the other factor,
                as D2DMoE's Gemma (arXiv 2310.04361, section 3.1)
    displaced   a = max(0, z - displacement), the layer's activation stays (eq. 5)
    none        a = h, what the output weights are multiplied by, whatever the activation

Padding is left out, and the first token of a sample in decoders (``recording.typical_tokens``).  A batch without other
tokens has the penalty 0.
Letters in shapes: B samples, T tokens, F neurons.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from planer.conversion.assessment import ASSESSED_TOKENS
from planer.conversion.penalties import PENALTIES, mean, ramp, sum_over_groups
from planer.conversion.recording import Recorder, Seen, typical_passes, typical_tokens
from planer.conversion.sites import FeedForwardSite, feed_forward_sites
from planer.runtime import Runtime
from planer.tasks.pretrained_task import PretrainedTask
from planer.tasks.task import Metrics, Result
from planer.training.finetune import finetune
from planer.training.loop import Record
from planer.training.terms import Term

if TYPE_CHECKING:
    from planer.config.pretrained import SiteSparsifyConfig

NEGLIGIBLE = 0.01
"""Activations below this share of the token's largest one are negligible (D2DMoE counts shares of 1/10 to 1/10^4)."""


def prepare_activation(model: nn.Module, on: str) -> None:
    """Put ReLU in the place of the network's activation where ``on`` is ``relu``; in its configuration too."""
    if on == "relu":
        feed_forward_sites(model)[0].adapter.use_relu(model)


class SitePenalty(Term):
    """A penalty on the activations of all feed-forward layers.

    The history gets ``penalty`` (mean over tokens and layers, before weighting), ``alpha``, and ``sparsity_<site>``,
    the share of a that is exactly zero.
    """

    def __init__(self, model: nn.Module, task: PretrainedTask, config: SiteSparsifyConfig):
        """model: after ``prepare_activation``.  Training must run inside ``watching``."""
        self.model, self.task, self.config = model, task, config
        self._recorder = Recorder(model)

    def watching(self) -> AbstractContextManager[Recorder]:
        """Record the activations of all passes inside the context."""
        return self._recorder.recording()

    def __call__(self, result: Result, batch: Any, step: int) -> tuple[Tensor, Metrics]:
        """See Term."""
        typical = typical_tokens(self.model, self.task, batch)
        alpha = self.config.weight * ramp(self.config.ramp, step + 1, self.config.steps)
        penalties: list[tuple[bool, Tensor]] = []
        metrics: Metrics = {}
        for site, seen in self._recorder.take():
            a = self._penalised(site, seen)[typical]
            penalties.append((site.is_projection, mean(PENALTIES[self.config.penalty](a))))
            metrics[f"sparsity_{site.name}"] = mean((a == 0).float())
        penalty = sum_over_groups(penalties)
        return alpha * penalty, {"penalty": penalty, "alpha": alpha} | metrics

    def items(self, batch: Any) -> Tensor:
        """See Term."""
        return typical_tokens(self.model, self.task, batch).sum()

    def _penalised(self, site: FeedForwardSite, seen: Seen) -> Tensor:
        """a of every token, [B, T, F]."""
        match self.config.on:
            case "relu":
                return torch.relu(seen.z) if site.gated else seen.h
            case "displaced":
                dtype = torch.promote_types(seen.z.dtype, torch.float32)  # near 10, half precision has steps of 0.06
                return torch.relu(seen.z.to(dtype) - self.config.displacement)
        return seen.h


def sparsity(model: nn.Module, task: PretrainedTask, split: str) -> pd.DataFrame:
    """Shares of activations h by layer (index): ``zero``, and ``negligible`` beside the token's largest."""
    sums: dict[str, np.ndarray] = {}
    for recorder, typical in typical_passes(model.eval(), task, split, ASSESSED_TOKENS, 0):
        for site, seen in recorder.take():
            h = seen.h[typical].abs()
            small = h < NEGLIGIBLE * h.amax(-1, keepdim=True)
            counts = np.array([int((h == 0).sum()), int((small | (h == 0)).sum()), h.numel()])
            sums[site.name] = sums.get(site.name, 0) + counts
    shares = {name: {"zero": zero / all, "negligible": small / all} for name, (zero, small, all) in sums.items()}
    return pd.DataFrame.from_dict(shares, orient="index")


def sparsify_sites(
    model: nn.Module, task: PretrainedTask, config: SiteSparsifyConfig, runtime: Runtime, record: Record
) -> tuple[pd.DataFrame, dict[str, float]]:
    """Fine-tune a network in transformers' classes, or continue from the checkpoint; it ends in eval mode.

    Returns the history, and the metrics:

    - those of ``finetune``, and valid_<measure>_before, of the network before its activation was replaced
    - sparsity, negligible (means over layers on validation samples) and both with the suffix ``_before``;
      sparsity_<site>
    - converted_layers

    With a weight of 0 there is no penalty: a ReLU network without it is what MoEfication starts from.
    The caller deletes the checkpoint when it has written the results.
    """
    model.to(runtime.device).eval()
    before = task.evaluate(model, "valid", "sparsify: before")
    rare = sparsity(model, task, "valid").mean()
    prepare_activation(model, config.on)
    penalties = [SitePenalty(model, task, config)] if config.weight else []
    with penalties[0].watching() if penalties else nullcontext():
        history, metrics = finetune(model, task, config, runtime, record, penalties)
    shares = sparsity(model, task, "valid")
    return history, metrics | {
        "converted_layers": len(shares),
        **{f"valid_{name}_before": value for name, value in before.items()},
        "sparsity": shares["zero"].mean(),
        "negligible": shares["negligible"].mean(),
        "sparsity_before": rare["zero"],
        "negligible_before": rare["negligible"],
        **{f"sparsity_{name}": share for name, share in shares["zero"].items()},
    }
