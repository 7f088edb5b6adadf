"""The attention projections of our own networks as MLPs, each trained to compute what the projection computes.

As projections.py does for pretrained networks: the network with its own projections is frozen and reads the text; an
MLP regresses each of its queries, keys, values and outputs from the same inputs.
Letters in shapes: B sequences, T tokens, N = B T, D model width, W width of the concatenated heads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planer.blocks.block import Wants
from planer.blocks.projection import ProjectionLayer
from planer.config import ProjectionConfig
from planer.config.conversion import hidden_width
from planer.config.lengths import VALID_BATCH
from planer.conversion.penalties import ramp
from planer.conversion.projection_loss import RelativeErrors, regression
from planer.conversion.routers import FrozenReading
from planer.data.stream import EvalBatches
from planer.data.texts import Texts
from planer.models import LanguageModel
from planer.runtime import Runtime
from planer.specs import Architecture, MlpAttention
from planer.specs.mlp_attention import PROJECTIONS
from planer.tasks.causal_lm import Batch
from planer.tasks.task import MAIN, Metrics, Result, RowScore
from planer.training.loop import Record, StepGroup, fit
from planer.training.optimizer import make_optimizer
from planer.training.terms import Term

ASSESSED_TOKENS = 5_000
"""Tokens of the validation text on which the errors are measured."""


def replaced(architecture: Architecture) -> list[int]:
    """Positions of the attentions that get MLPs: those as wide as the network.

    Projections of fewer heads are smaller, and kernels of experts give as many numbers per token as they take.
    """
    blocks = enumerate(architecture.blocks)
    return [place for place, spec in blocks if spec.projects and spec.width == architecture.d_model]


def with_mlps(model: LanguageModel, width_factor: float) -> LanguageModel:
    """The network with MLPs, of random weights, in the place of the projections of ``replaced``, in eval mode.

    width_factor: weights of an MLP over those of its projection.  Other weights are the network's, copied.
    """
    architecture, blocks = model.architecture, list(model.architecture.blocks)
    for place in replaced(architecture):
        spec = blocks[place]
        neurons = hidden_width(architecture.d_model, spec.width, width_factor)
        blocks[place] = MlpAttention(spec.num_heads, spec.d_head, neurons)
    made = LanguageModel(dataclasses.replace(architecture, blocks=tuple(blocks)))
    own = made.state_dict()
    made.load_state_dict(own | {name: value for name, value in model.state_dict().items() if name in own})
    return made.to(next(model.parameters()).device).eval()


class AttentionRegression(Term):
    """Fits MLPs to the projections of every attention, on what the network itself computes.

    The history has ``error``, the mean squared error over projections, ``penalty`` and ``alpha``.
    """

    def __init__(self, model: LanguageModel, made: LanguageModel, config: ProjectionConfig):
        """made: of ``with_mlps``.  Training must run inside ``watching``."""
        self.config, self._seen = config, {}
        places = replaced(model.architecture)
        self._attentions = {place: model.blocks[place].sublayer for place in places}
        self.layers: dict[str, ProjectionLayer] = {
            f"{place}_{name}": made.blocks[place].sublayer.get_submodule(name)
            for place in places
            for name in PROJECTIONS
        }

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Keep inputs and results of all projections in the passes inside the context."""
        with ExitStack() as stack:
            for place, attention in self._attentions.items():
                stack.callback(attention.register_forward_pre_hook(self._entered(place)).remove)
                stack.callback(attention.output.register_forward_hook(self._left(place)).remove)
            yield

    def _entered(self, place: int):
        def see(attention: nn.Module, arguments: tuple[Tensor]) -> None:
            x = arguments[0]
            projected = F.linear(x, attention.qkv.weight).chunk(3, dim=-1)
            self._seen |= {f"{place}_{name}": (x, y) for name, y in zip(PROJECTIONS, projected, strict=False)}

        return see

    def _left(self, place: int):
        def see(module: nn.Module, arguments: tuple[Tensor], result: Tensor) -> None:
            self._seen[f"{place}_output"] = arguments[0], result

        return see

    def taken(self) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
        """Inputs [N, D or W] and results of every projection in the last pass, forgotten as they are taken."""
        for name in self.layers:
            x, y = self._seen.pop(name)
            yield name, (x.flatten(0, -2), y.flatten(0, -2))

    def __call__(self, result: Result, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        """See Term."""
        alpha = self.config.weight * ramp(self.config.ramp, step + 1, self.config.steps)
        return regression(self.layers, self.taken(), alpha)


class FrozenNetwork(FrozenReading):
    """Reads the text with another network than the one that is trained."""

    def __init__(self, network: LanguageModel, texts: Texts, config: ProjectionConfig, runtime: Runtime):
        super().__init__(texts, config, runtime, name="projections")
        self._network = network

    def loss(
        self, model: nn.Module, batch: Batch, state: list | None, wants: Wants = (), scores: Sequence[RowScore] = ()
    ) -> Result:
        """See Task."""
        return super().loss(self._network, batch, state)


def distil_own_projections(
    model: LanguageModel, texts: Texts, config: ProjectionConfig, runtime: Runtime, record: Record
) -> tuple[LanguageModel, pd.DataFrame, dict[str, float]]:
    """Train an MLP for every projection of the attentions of ``replaced``, from fresh weights or from the checkpoint.

    Returns the network of ``with_mlps`` with the trained MLPs, the history, and the metrics of
    ``projections.distil_projections``; error_<name> has the block's position and the projection in its name.  A network
    without such attentions comes back as it is; its metrics say so.
    """
    if not replaced(model.architecture):
        reason = f"{model.architecture.pattern} has no attention with all heads, whose projections could be replaced"
        return model, pd.DataFrame({"step": pd.Series(dtype="int64")}), {"projections": 0, "reason": reason}
    model.to(runtime.device).eval().requires_grad_(False)
    made = with_mlps(model, config.width_factor)
    term = AttentionRegression(model, made, config)
    generator = runtime.generator("projections", "initialisation")
    for layer in term.layers.values():
        layer.draw(generator)
    runtime.seed_everything("projections", "dropout")
    trained = nn.ModuleList(term.layers.values())
    groups = {MAIN: StepGroup(make_optimizer(trained.parameters(), config.optimizer), config.optimizer, config.steps)}
    with term.watching():
        reading = FrozenNetwork(model, texts, config, runtime)
        history, speed = fit(trained.train(), reading, [term], groups, runtime, config, record)
        made.eval()
        errors = _assess(model, term, texts, config, runtime)
    model.requires_grad_(True)
    return made, history, errors.metrics() | speed


@torch.no_grad()
def _assess(
    model: LanguageModel, term: AttentionRegression, texts: Texts, config: ProjectionConfig, runtime: Runtime
) -> RelativeErrors:
    errors, state = RelativeErrors(term.layers), None
    text = texts.valid[:ASSESSED_TOKENS]
    for segment, _, counted in EvalBatches(text, VALID_BATCH, config.tgt_len, config.mem_len):
        output = model(segment.to(runtime.device), state, mem_len=config.mem_len, attention="cached")
        state = output.state
        for name, (x, y) in term.taken():
            if counted:
                errors.add(name, x, y)
    return errors
