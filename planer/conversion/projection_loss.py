"""What MLPs in the place of attention projections are trained by, and how well they do (D2DMoE, arXiv 2310.04361, 3.4).

    Loss = mean over projections of ||MLP(x) - W x - b||^2 / d  +  alpha_t * mean over projections, tokens of H2(hidden)

Inputs that autocast made half precision are read in that of the MLPs' weights.
Letters in shapes: N tokens, d width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from planer.blocks.projection import ProjectionLayer
from planer.conversion.penalties import square_hoyer
from planer.tasks.task import Metrics


def regression(
    layers: Mapping[str, ProjectionLayer], taken: Iterable[tuple[str, tuple[Tensor, Tensor]]], alpha: float
) -> tuple[Tensor, Metrics]:
    """The loss of the module's text, and its parts.  taken: inputs and results [N, d] of projections by name."""
    errors, penalties = [], []
    for name, (x, y) in taken:
        predicted, hidden = layers[name].with_hidden(x.to(layers[name].up.weight.dtype))
        errors.append((predicted - y).square().mean())
        penalties.append(square_hoyer(hidden).mean())
    error, penalty = torch.stack(errors).mean(), torch.stack(penalties).mean()
    return error + alpha * penalty, {"error": error, "penalty": penalty, "alpha": alpha}


class RelativeErrors:
    """Squared errors of MLPs over the variance of what their projections compute."""

    def __init__(self, layers: Mapping[str, ProjectionLayer]):
        self._layers, self._squared, self._moments = layers, dict.fromkeys(layers, 0.0), {}

    def add(self, name: str, x: Tensor, y: Tensor) -> None:
        """x, y: inputs and results [N, d] of a projection."""
        y, layer = y.double(), self._layers[name]
        self._squared[name] += (layer(x.to(layer.up.weight.dtype)) - y).square().sum().item()
        moments = torch.stack((torch.ones_like(y), y, y.square())).sum(1)
        self._moments[name] = self._moments.get(name, 0) + moments

    def metrics(self) -> dict[str, float]:
        """projections, error (the mean) and error_<name>; 0 is perfect, 1 no better than the mean of the results."""
        variances = {name: (square - total.square() / n).sum() for name, (n, total, square) in self._moments.items()}
        errors = {name: self._squared[name] / variance.item() for name, variance in variances.items()}
        named = {f"error_{name}": error for name, error in errors.items()}
        return {"projections": len(errors), "error": sum(errors.values()) / len(errors)} | named
