"""Training the routers of split layers: regress the norm of every expert's output (D2DMoE, arXiv 2310.04361, eq. 3).

    Loss = mean over layers, tokens, experts of (R(x)_c - ||E_c(x)||)^2,     R(x) = |V2 relu(V1 x)|

The network is frozen and runs all its experts, so the inputs x and the targets are those of the dense network.  The
outputs E_c(x) are never computed.  With the expert's activations h_c and G_c = W2_c W2_c^T, [s, s],

    ||E_c(x)|| = ||W2_c^T h_c|| = sqrt(h_c^T G_c h_c)

which takes s instead of D multiply-adds per activation, and no memory for N x n x D outputs.
Letters in shapes: N tokens, D model width, F neurons, n experts, s = F / n neurons per expert.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from planer.blocks.dynamic_moe import DynamicMoE
from planer.config import RouterConfig, derive_seed
from planer.data.stream import EvalBatches
from planer.kernels.routing import threshold
from planer.models import LanguageModel
from planer.runtime import autocast
from planer.training.checkpoint import Checkpoint
from planer.training.loop import fit
from planer.training.retrain import LanguageModelling
from planer.training.terms import CrossEntropy
from planer.training.validate import VALID_BATCH

ASSESSED_TOKENS = 20_000
"""Routers are compared with the true norms on this much of the validation text."""
ASSESSED_TAUS = (0.1, 0.3)
"""Thresholds at which the router's choice of experts is compared with the oracle's."""


def output_gram(block: DynamicMoE) -> Tensor:
    """G_c = W2_c W2_c^T of every expert: [n, s, s], in at least single precision, whatever the autocast."""
    w2 = block.w2.detach()
    w2 = w2.to(torch.promote_types(w2.dtype, torch.float32)).unflatten(0, (block.num_experts, -1))
    with torch.autocast(w2.device.type, enabled=False):
        return w2 @ w2.mT


@torch.no_grad()
def expert_norms(block: DynamicMoE, x: Tensor, gram: Tensor | None = None) -> Tensor:
    """Norm of what each expert would add to the layer's output, without b2: x [N, D] to [N, n].

    gram: output_gram(block), when the caller keeps it.  At least single precision too.
    """
    gram = output_gram(block) if gram is None else gram
    with torch.autocast(x.device.type, enabled=False):
        hidden = block.hidden(x.to(gram.dtype)).unflatten(-1, (block.num_experts, -1)).transpose(0, 1)  # [n, N, s]
        return (hidden @ gram).mul_(hidden).sum(-1).clamp_(min=0).sqrt_().t()


class RouterRegression(LanguageModelling):
    """Reads the text as language modelling does, and fits the routers of all split layers at once to the expert norms.

    The history has ``loss`` and ``loss_<block>``, the mean squared error of each layer; blocks count all positions.
    """

    def __init__(
        self,
        model: LanguageModel,
        train_tokens: np.ndarray,
        valid_tokens: np.ndarray,
        config: RouterConfig,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """model: on its device already; everything but its routers is frozen.  dtype: of the network's products."""
        model.requires_grad_(False)
        for block in model.dynamic_blocks():
            block.router.requires_grad_(True)
            block.tau = 0.0
        texts = (train_tokens, valid_tokens)
        prediction, told = CrossEntropy(model), {"eval_steps": config.steps, "dtype": dtype, "name": "train_routers"}
        super().__init__(model, *texts, config, prediction, **told)
        model.eval()
        specs = model.architecture.blocks
        self.positions = [i for i, spec in enumerate(specs) if spec.dynamic]
        self._blocks = model.dynamic_blocks()
        self._grams = [output_gram(block) for block in self._blocks]

    def loss(self, step: int) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Squared errors on one segment."""
        tokens, _ = self.batches.batch_at(step)
        self.tokens += tokens.numel()
        inputs, self.memory = self.inputs(tokens, self.memory, attention="recompute")
        losses = [(block.router_scores(x) - norms).square().mean() for block, x, norms in self.targets(inputs)]
        metrics = {f"loss_{position}": loss for position, loss in zip(self.positions, losses, strict=True)}
        return torch.stack(losses).mean(), metrics

    def end_of_step(self, step: int) -> None:
        """No validation: the network's predictions do not change."""

    @torch.no_grad()
    def inputs(self, tokens: Tensor, memory: list | None, attention: str) -> tuple[list[Tensor], list]:
        """Run the frozen network on tokens [B, T]; the input [N, D] of each split layer, and the next memory."""
        with _captured_inputs(self._blocks) as inputs, autocast(self.device, self.dtype):
            tokens = tokens.to(self.device, non_blocking=True)
            _, memory = self.model(tokens, memory, mem_len=self.config.mem_len, attention=attention)
        return inputs, memory

    def targets(self, inputs: list[Tensor]) -> Iterator[tuple[DynamicMoE, Tensor, Tensor]]:
        """Each split layer with its input and its experts' norms [N, n]."""
        for block, gram, x in zip(self._blocks, self._grams, inputs, strict=True):
            yield block, x, expert_norms(block, x, gram)


@contextmanager
def _captured_inputs(blocks: list[DynamicMoE]) -> Iterator[list[Tensor]]:
    """A list that forward passes fill with the input of each block, flattened to [N, D]."""
    inputs: list[Tensor] = []
    handles = [
        block.register_forward_pre_hook(lambda block, arguments: inputs.append(arguments[0].flatten(0, -2)))
        for block in blocks
    ]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


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
def assess(objective: RouterRegression) -> dict[str, float]:
    """Compare every router with the true norms on the validation text; the metrics are explained in train_routers."""
    config = objective.config
    assessments = [_Assessment() for _ in objective.positions]
    tokens, memory = objective.valid_tokens[:ASSESSED_TOKENS], None
    for segment, _, counted in EvalBatches(tokens, VALID_BATCH, config.tgt_len, config.mem_len):
        inputs, memory = objective.inputs(segment, memory, attention="cached")
        if counted:
            for assessment, (block, x, norms) in zip(assessments, objective.targets(inputs), strict=True):
                assessment.add(block.router_scores(x), norms)
    layers = pd.DataFrame([assessment.metrics() for assessment in assessments], index=objective.positions)
    return layers.mean().to_dict() | {f"r2_{position}": r2 for position, r2 in layers["r2"].items()}


def train_routers(
    model: LanguageModel,
    train_tokens: np.ndarray,
    valid_tokens: np.ndarray,
    config: RouterConfig,
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
    checkpoint: Checkpoint,
    on_row: Callable[[dict], None] = lambda row: None,
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
    initialise_routers(model, torch.Generator().manual_seed(derive_seed(seed, "train_routers", "initialisation")))
    objective = RouterRegression(model.to(device), train_tokens, valid_tokens, config, dtype=dtype)
    history = fit(
        objective,
        log_steps=config.log_steps,
        checkpoint_steps=config.checkpoint_steps,
        checkpoint=checkpoint,
        on_row=on_row,
    )
    metrics = {"converted_layers": len(objective.positions), **assess(objective), **objective.speed}
    model.requires_grad_(True)
    return model, history, metrics


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
