"""Training the routers of split layers: regress the norm of every expert's output (D2DMoE, arXiv 2310.04361, eq. 3).

    Loss = mean over layers, tokens, experts of (R(x)_c - ||E_c(x)||)^2,     R(x) = |V2 relu(V1 x)|

The network is frozen and runs all its experts, so the inputs x and the targets are those of the dense network.  The
outputs E_c(x) are never computed: norms.py.
Letters in shapes: N tokens, D model width, F neurons, n experts, s = F / n neurons per expert.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from planer.blocks.block import Aux, Wants, of_layers
from planer.blocks.dynamic_moe import DynamicMoE, Router
from planer.config import RouterConfig
from planer.config.lengths import VALID_BATCH
from planer.conversion.assessment import ASSESSED_TOKENS, Assessment
from planer.conversion.norms import expert_norms, output_gram
from planer.data.stream import EvalBatches
from planer.data.texts import Texts
from planer.models import LanguageModel
from planer.runtime import Runtime
from planer.tasks.causal_lm import Batch, CausalLM
from planer.tasks.task import MAIN, Metrics, Result, RowScore
from planer.training.loop import Record, StepGroup, fit
from planer.training.optimizer import make_optimizer
from planer.training.terms import Term


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

    The history has ``loss`` and ``loss_<layer>``, the mean squared error of each; names are as of ``of_layers``.
    """

    wants = ("inputs",)

    def __init__(self, model: LanguageModel) -> None:
        """Everything of the model but its routers is frozen; its layers run all their experts."""
        model.requires_grad_(False)
        for block in model.dynamic_blocks():
            block.router.requires_grad_(True)
            block.tau = 0.0
        specs = enumerate(model.architecture.blocks)
        self.names = [f"{position}{part}" for position, spec in specs if spec.dynamic for part in spec.layers()]
        self._blocks = model.dynamic_blocks()
        self._grams = [output_gram(block.w2, block.num_experts) for block in self._blocks]

    def __call__(self, result: Result, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        """See Term."""
        losses = [(scores - norms).square().mean() for scores, norms in self.compared(result.aux)]
        metrics = {f"loss_{name}": loss for name, loss in zip(self.names, losses, strict=True)}
        return torch.stack(losses).mean(), metrics

    def compared(self, aux: Sequence[Aux]) -> Iterator[tuple[Tensor, Tensor]]:
        """Predicted and true norms [N, n] of every split layer, on the inputs that a pass handed on."""
        inputs = of_layers(aux, "inputs")
        for name, block, gram in zip(self.names, self._blocks, self._grams, strict=True):
            x = inputs[name].flatten(0, -2)
            norms = layer_norms(block, x, gram)
            yield block.router_scores(x), norms


@torch.no_grad()
def assess(
    model: LanguageModel, regression: RouterRegression, text: np.ndarray, config: RouterConfig, runtime: Runtime
) -> dict[str, float]:
    """Compare every router with the true norms on a text; means over layers of ``Assessment``."""
    assessments, state = [Assessment() for _ in regression.names], None
    reading = {"mem_len": config.mem_len, "attention": "cached", "wants": regression.wants}
    for segment, _, counted in EvalBatches(text, VALID_BATCH, config.tgt_len, config.mem_len):
        with runtime.autocast():
            output = model(segment.to(runtime.device), state, **reading)
        state = output.state
        if counted:
            for assessment, compared in zip(assessments, regression.compared(output.aux), strict=True):
                assessment.add(*compared)
    layers = pd.DataFrame([assessment.metrics() for assessment in assessments], index=regression.names)
    return layers.mean().to_dict() | {f"r2_{name}": r2 for name, r2 in layers["r2"].items()}


def train_routers(
    model: LanguageModel, texts: Texts, config: RouterConfig, runtime: Runtime, record: Record
) -> tuple[LanguageModel, pd.DataFrame, dict]:
    """Train routers for a model that ``split`` made, from fresh weights or from the checkpoint.

    Returns a network with the model's weights and routers, in eval mode, the history, and the metrics, on validation
    text:

    - converted_layers, steps, tokens, seconds, tokens_per_second
    - those of ``Assessment``, means over layers, and r2_<layer>

    A network without split layers comes back as it is; its metrics say so.  The caller deletes the checkpoint when it
    has written the results.
    """
    if not model.dynamic_blocks():
        reason = f"{model.architecture.pattern} has no layer that was split into experts"
        return model, pd.DataFrame({"step": pd.Series(dtype="int64")}), {"converted_layers": 0, "reason": reason}
    model = with_routers(model, config.width)
    routers = [block.router for block in model.dynamic_blocks()]
    initialise_routers(routers, runtime.generator("train_routers", "initialisation"))
    regression = RouterRegression(model.to(runtime.device))
    task = FrozenReading(texts, config, runtime, name="train_routers")
    optimizer = make_optimizer(model.parameters(), config.optimizer)
    groups = {MAIN: StepGroup(optimizer, config.optimizer, config.steps)}
    history, speed = fit(model.eval(), task, [regression], groups, runtime, config, record)
    metrics = assess(model, regression, texts.valid[:ASSESSED_TOKENS], config, runtime)
    model.requires_grad_(True)
    return model, history, {"converted_layers": len(regression.names), **metrics, **speed}


def with_routers(model: LanguageModel, width: int) -> LanguageModel:
    """The network with a router of this width, not yet initialised, in every split layer."""
    blocks = tuple(
        dataclasses.replace(spec, router_width=width) if spec.dynamic else spec for spec in model.architecture.blocks
    )
    routed = LanguageModel(dataclasses.replace(model.architecture, blocks=blocks))
    routed.load_state_dict(routed.state_dict() | model.state_dict())
    return routed.eval()


@torch.no_grad()
def initialise_routers(routers: Iterable[Router], generator: torch.Generator) -> None:
    """Draw the routers' weights as PyTorch does for linear layers, uniform within 1 / sqrt(fan-in)."""
    for router in routers:
        for weight in router.parameters():
            weight.copy_(torch.empty(weight.shape).uniform_(-1, 1, generator=generator) / weight.shape[1] ** 0.5)
