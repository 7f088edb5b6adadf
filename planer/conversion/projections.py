"""Attention projections as small feed-forward layers, which can be made sparse and split into experts as others.

D2DMoE (arXiv 2310.04361, section 3.4): each projection, d x d, becomes an MLP d -> h -> d of as many weights that
regresses what the projection computed on the network's own inputs (projection_loss.py).
The rest of the network is frozen, and runs its own projections: every MLP is trained by itself.
Letters in shapes: N tokens, d width, h hidden neurons.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor, nn

from planer.blocks.projection import ProjectionLayer
from planer.config.conversion import hidden_width
from planer.conversion.penalties import ramp
from planer.conversion.projection_loss import RelativeErrors, regression
from planer.conversion.recording import FrozenPasses, typical_passes
from planer.pretrained.projections import new_layers, projections
from planer.runtime import Runtime
from planer.tasks.pretrained_task import PretrainedTask
from planer.tasks.task import MAIN, Metrics, Result
from planer.training.loop import Record, StepGroup, fit
from planer.training.optimizer import make_optimizer
from planer.training.terms import Term

if TYPE_CHECKING:
    from planer.config.pretrained import SiteProjectionConfig

ASSESSED_TOKENS = 5_000
"""Tokens of the validation split on which the errors are measured."""


def make_layers(
    model: nn.Module, config: SiteProjectionConfig, generator: torch.Generator
) -> tuple[dict[str, ProjectionLayer], dict]:
    """An untrained MLP for every projection in config.replace, with PyTorch's usual weights, on the network's device.

    Also returns their description, as planer/pretrained/projections.py has it.
    Raises UserError for families whose projections are not replaced.
    """
    linear = next(iter(projections(model, config.replace).values()))
    description = {
        "replace": list(config.replace),
        "width": hidden_width(linear.in_features, linear.out_features, config.width_factor),
        "dropout": config.dropout,
        "activation": "relu" if config.activation == "relu" else None,
    }
    layers = new_layers(model, description)
    for layer in layers.values():
        layer.draw(generator)
        layer.to(linear.weight.device)
    return layers, description


class ProjectionRegression(Term):
    """Fits an MLP to every projection.

    The history has ``error``, the mean squared error over projections, ``penalty`` and ``alpha``.
    """

    def __init__(self, model: nn.Module, task: PretrainedTask, layers: dict[str, ProjectionLayer], config: Any):
        """model: with its own projections.  Training must run inside ``watching``."""
        self.task, self.config, self._layers = task, config, layers
        self._linears = {name: model.get_submodule(name) for name in layers}
        self._seen: dict[str, tuple[Tensor, Tensor]] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Keep inputs and results of all projections in the passes inside the context."""
        with ExitStack() as stack:
            for name, linear in self._linears.items():
                stack.callback(linear.register_forward_hook(self._keep(name)).remove)
            yield

    def _keep(self, name: str):
        def see(module: nn.Module, arguments: tuple[Tensor], result: Tensor) -> None:
            self._seen[name] = arguments[0], result

        return see

    def __call__(self, result: Result, batch: Any, step: int) -> tuple[Tensor, Metrics]:
        """See Term."""
        alpha = self.config.weight * ramp(self.config.ramp, step + 1, self.config.steps)
        real = self.task.real(batch)
        return regression(self._layers, ((name, (x[real], y[real])) for name, (x, y) in self.taken()), alpha)

    def taken(self) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
        """Inputs and results of every projection in the last pass, forgotten as they are taken."""
        for name in self._layers:
            yield name, self._seen.pop(name)


def distil_projections(
    model: nn.Module, task: PretrainedTask, config: SiteProjectionConfig, runtime: Runtime, record: Record
) -> tuple[pd.DataFrame, dict[str, float]]:
    """Train an MLP for every projection in config.replace, from fresh weights or the checkpoint, and put it there.

    The network then has the class of such networks (planer/pretrained/types.py).
    Returns the history, and the metrics: projections, error_<name> (squared error on validation samples over the
    variance of what the projection computes: 0 is perfect, 1 no better than its mean), error (their mean), and those of
    ``training.loop.fit``.
    Raises UserError for families whose projections are not replaced, before any work.
    """
    from planer.pretrained.types import replace_projections  # imports transformers

    model.to(runtime.device).eval()
    layers, description = make_layers(model, config, runtime.generator("projections", "initialisation"))
    runtime.seed_everything("projections", "dropout")
    model.requires_grad_(False)
    trained = nn.ModuleList(layers.values())
    groups = {MAIN: StepGroup(make_optimizer(trained.parameters(), config.optimizer), config.optimizer, config.steps)}
    regression = ProjectionRegression(model, task, layers, config)
    with regression.watching():
        passes = FrozenPasses(model, task)
        history, speed = fit(trained.train(), passes, [regression], groups, runtime, config, record)
        trained.eval()
        errors = _relative_errors(model, task, regression, layers)
    replace_projections(model, layers, description)
    model.requires_grad_(True)
    return history, errors.metrics() | speed


@torch.no_grad()
def _relative_errors(
    model: nn.Module, task: PretrainedTask, regression: ProjectionRegression, layers: dict[str, ProjectionLayer]
) -> RelativeErrors:
    errors = RelativeErrors(layers)
    for _, typical in typical_passes(model, task, "valid", ASSESSED_TOKENS, 0):
        for name, (x, y) in regression.taken():
            errors.add(name, x[typical], y[typical])
    return errors
