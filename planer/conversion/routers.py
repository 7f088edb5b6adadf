"""Training the routers of split layers: regress the norm of every expert's output (D2DMoE, arXiv 2310.04361, eq. 3).

    Loss = mean over layers, tokens, experts of (R(x)_c - ||E_c(x)||)^2,     R(x) = |V2 relu(V1 x)|

The network is frozen and runs all its experts, so the inputs x and the targets are those of the dense network.  The
outputs E_c(x) are never computed: norms.py.
Letters in shapes: N tokens, D model width, F neurons, n experts, s = F / n neurons per expert.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from planer.blocks.block import Aux, Wants
from planer.blocks.dynamic_moe import DynamicMoE
from planer.config import RouterConfig
from planer.conversion.norms import expert_norms, output_gram
from planer.data.stream import EvalBatches
from planer.data.texts import Texts
from planer.kernels.routing import threshold
from planer.models import LanguageModel
from planer.runtime import Runtime
from planer.tasks.causal_lm import Batch, CausalLM
from planer.tasks.nll import VALID_BATCH
from planer.tasks.task import MAIN, Metrics, Result, RowScore
from planer.training.loop import Record, StepGroup, fit
from planer.training.optimizer import make_optimizer
from planer.training.terms import Term

ASSESSED_TOKENS = 20_000
"""Routers are compared with the true norms on this much of the validation text."""
ASSESSED_TAUS = (0.1, 0.3)
"""Thresholds at which the router's choice of experts is compared with the oracle's."""


def layer_norms(block: DynamicMoE, x: Tensor, gram: Tensor | None = None) -> Tensor:
    """Norm of each expert's part of the layer's output, without b2: x [N, D] to [N, n].

    gram: ``output_gram`` of the block, when the caller keeps it.  In at least single precision.
    """
    gram = output_gram(block.w2, block.num_experts) if gram is None else gram
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        return expert_norms(block.hidden(x.to(gram.dtype)), gram)


class FrozenReading(CausalLM):
    """Reads the text as language modelling does, without a loss or a validation: its predictions do not change."""

    def loss(
        self, model: LanguageModel, batch: Batch, state: list | None, wants: Wants = (), scores: Sequence[RowScore] = ()
    ) -> Result:
        """See Task."""
        with torch.no_grad():
            output = model(batch.inputs, state, mem_len=self.config.mem_len, wants=wants)
        zero = torch.zeros((), device=batch.inputs.device)
        return Result(zero, {}, batch.inputs.numel(), output.state, output.aux, {})


class RouterRegression(Term):
    """Fits the routers of all split layers at once to the expert norms.

    The history has ``loss`` and ``loss_<block>``, the mean squared error of each layer; blocks count all positions.
    """

    wants = ("inputs",)

    def __init__(self, model: LanguageModel) -> None:
        """Everything of the model but its routers is frozen; its layers run all their experts."""
        model.requires_grad_(False)
        for block in model.dynamic_blocks():
            block.router.requires_grad_(True)
            block.tau = 0.0
        specs = model.architecture.blocks
        self.positions = [i for i, spec in enumerate(specs) if spec.dynamic]
        self._blocks = model.dynamic_blocks()
        self._grams = [output_gram(block.w2, block.num_experts) for block in self._blocks]

    def __call__(self, result: Result, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        """See Term."""
        losses = [(scores - norms).square().mean() for scores, norms in self.compared(result.aux)]
        metrics = {f"loss_{position}": loss for position, loss in zip(self.positions, losses, strict=True)}
        return torch.stack(losses).mean(), metrics

    def compared(self, aux: Sequence[Aux]) -> Iterator[tuple[Tensor, Tensor]]:
        """Predicted and true norms [N, n] of every split layer, on the inputs that a pass handed on."""
        for position, block, gram in zip(self.positions, self._blocks, self._grams, strict=True):
            x = aux[position]["inputs"].flatten(0, -2)
            norms = layer_norms(block, x, gram)
            yield block.router_scores(x), norms


class _Assessment:
    """Running comparison of one layer's router with the norms it predicts."""

    def __init__(self) -> None:
        self.tokens = 0
        self.sums: dict[str, Tensor] = {}

    def add(self, scores: Tensor, norms: Tensor) -> None:
        """scores, norms: [N, n]."""
        scores, norms = scores.double(), norms.double()
        self.tokens += len(norms)
        sums = {
            "error": (scores - norms).square().sum(),
            "norm": norms.sum(0),
            "square": norms.square().sum(0),
        }
        largest = norms.sort(-1, descending=True).values.cumsum(-1)
        for tau in ASSESSED_TAUS:
            chosen = threshold(scores, tau)
            count = chosen.sum(-1)
            sums |= {
                f"chosen {tau}": count.sum(),
                f"oracle {tau}": threshold(norms, tau).sum(),
                f"kept {tau}": (norms * chosen).sum(),
                f"best {tau}": largest.gather(1, count[:, None] - 1).sum(),
            }
        self.sums = {name: self.sums.get(name, 0) + value for name, value in sums.items()}

    def metrics(self) -> dict[str, float]:
        """See train_routers."""
        norm = self.sums["norm"]
        variance = (self.sums["square"] - norm.square() / self.tokens).sum().item()
        error = self.sums["error"].item()
        pairs = self.tokens * len(norm)
        metrics = {"valid_loss": error / pairs, "r2": 1 - error / variance if variance > 0 else 0.0}
        for tau in ASSESSED_TAUS:
            best = self.sums[f"best {tau}"].item()
            metrics |= {
                f"chosen_tau_{tau}": self.sums[f"chosen {tau}"].item() / pairs,
                f"oracle_tau_{tau}": self.sums[f"oracle {tau}"].item() / pairs,
                f"captured_tau_{tau}": self.sums[f"kept {tau}"].item() / best if best > 0 else 1.0,
            }
        return metrics


@torch.no_grad()
def assess(
    model: LanguageModel, regression: RouterRegression, text: np.ndarray, config: RouterConfig, runtime: Runtime
) -> dict[str, float]:
    """Compare every router with the true norms on a text; the metrics are explained in train_routers."""
    assessments, state = [_Assessment() for _ in regression.positions], None
    reading = {"mem_len": config.mem_len, "attention": "cached", "wants": regression.wants}
    for segment, _, counted in EvalBatches(text, VALID_BATCH, config.tgt_len, config.mem_len):
        with runtime.autocast():
            output = model(segment.to(runtime.device), state, **reading)
        state = output.state
        if counted:
            for assessment, compared in zip(assessments, regression.compared(output.aux), strict=True):
                assessment.add(*compared)
    layers = pd.DataFrame([assessment.metrics() for assessment in assessments], index=regression.positions)
    return layers.mean().to_dict() | {f"r2_{position}": r2 for position, r2 in layers["r2"].items()}


def train_routers(
    model: LanguageModel, texts: Texts, config: RouterConfig, runtime: Runtime, record: Record
) -> tuple[LanguageModel, pd.DataFrame, dict]:
    """Train routers for a model that ``split`` made, from fresh weights or from the checkpoint.

    Returns a network with the model's weights and routers, in eval mode, the history, and the metrics, on validation
    text:

    - converted_layers, steps, tokens, seconds, tokens_per_second
    - valid_loss, r2, r2_<block>: squared error, and the share of each expert's variance over tokens that is predicted
      (1 is perfect, 0 is no better than always predicting the expert's mean)
    - chosen_tau_<tau>, oracle_tau_<tau>: share of experts that the threshold runs by predicted and by true norms
    - captured_tau_<tau>: sum of the chosen experts' true norms, over the largest sum that as many experts have

    A network without split layers comes back as it is; its metrics say so.  The caller deletes the checkpoint when it
    has written the results.
    """
    if not model.dynamic_blocks():
        reason = f"{model.architecture.pattern} has no layer that was split into experts"
        return model, pd.DataFrame({"step": pd.Series(dtype="int64")}), {"converted_layers": 0, "reason": reason}
    model = with_routers(model, config.width)
    initialise_routers(model, runtime.generator("train_routers", "initialisation"))
    regression = RouterRegression(model.to(runtime.device))
    task = FrozenReading(texts, config, runtime, name="train_routers")
    optimizer = make_optimizer(model.parameters(), config.optimizer)
    groups = {MAIN: StepGroup(optimizer, config.optimizer, config.steps)}
    history, speed = fit(model.eval(), task, [regression], groups, runtime, config, record)
    metrics = assess(model, regression, texts.valid[:ASSESSED_TOKENS], config, runtime)
    model.requires_grad_(True)
    return model, history, {"converted_layers": len(regression.positions), **metrics, **speed}


def with_routers(model: LanguageModel, width: int) -> LanguageModel:
    """The network with a router of this width, not yet initialised, in every split layer."""
    blocks = tuple(
        dataclasses.replace(spec, router_width=width) if spec.dynamic else spec for spec in model.architecture.blocks
    )
    routed = LanguageModel(dataclasses.replace(model.architecture, blocks=blocks))
    routed.load_state_dict(routed.state_dict() | model.state_dict())
    return routed.eval()


@torch.no_grad()
def initialise_routers(model: LanguageModel, generator: torch.Generator) -> None:
    """Draw the routers' weights as PyTorch does for linear layers, uniform within 1 / sqrt(fan-in)."""
    for block in model.dynamic_blocks():
        for weight in block.router.parameters():
            weight.copy_(torch.empty(weight.shape).uniform_(-1, 1, generator=generator) / weight.shape[1] ** 0.5)
