"""Tiny converted networks of every family in transformers' classes, with random routers."""

from __future__ import annotations

import torch
from torch import nn

from planer.conversion.dynamic import make_dynamic
from planer.conversion.selectors import quantiles_of
from tests.unit.tiny_pretrained import WIDTH, tiny

EXPERT_SIZE, EXPERTS, ROUTER_WIDTH = 4, 6, 8


def converted(family: str) -> nn.Module:
    """Experts of 4 neurons that are selected by dynamic-k."""
    model = tiny(family)
    generator = torch.Generator().manual_seed(3)
    for layer in make_dynamic(model, EXPERT_SIZE, ROUTER_WIDTH):
        with torch.no_grad():
            for weight in layer.router.parameters():
                weight.normal_(generator=generator)
            layer.quantiles.copy_(quantiles_of(layer.router(torch.randn(99, WIDTH, generator=generator))))
    return model
