"""Random weights, as Transformer-XL draws them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

PROJECTION_STD = 0.01
"""Whatever init_std is."""


@torch.no_grad()
def initialise(model: nn.Module, generator: torch.Generator) -> None:
    """Draw the weights as Transformer-XL does: N(0, init_std), zero biases, LayerNorm weights N(1, init_std).

    Projections of an adaptive embedding are N(0, PROJECTION_STD).  The attribute ``initial`` of a module names other
    distributions for its own parameters (planer/initial.py).  A generator gives the same weights on every device.
    """
    std = model.architecture.init_std

    def draw(parameter: Tensor, mean: float = 0.0, std: float = std) -> None:
        noise = torch.empty(parameter.shape, device=generator.device).normal_(mean, std, generator=generator)
        parameter.copy_(noise)

    for module in model.modules():
        initial = getattr(module, "initial", {})
        for name, parameter in module.named_parameters(recurse=False):
            if name in initial:
                parameter.copy_(initial[name](torch.empty(parameter.shape, device=generator.device), generator))
            elif name in ("bias", "b1", "b2", "cluster_bias"):
                parameter.zero_()
            elif name.startswith("projection"):
                draw(parameter, std=PROJECTION_STD)
            else:
                draw(parameter, mean=1.0 if isinstance(module, nn.LayerNorm) else 0.0)
