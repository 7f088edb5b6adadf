"""Tiny converted networks of every family in transformers' classes, with random routers or made-up thresholds."""

from __future__ import annotations

import torch
from torch import nn

from planer.conversion.dynamic import make_dynamic
from planer.conversion.hub import mark
from planer.conversion.neuron_threshold import Thresholds
from planer.conversion.selectors import quantiles_of
from planer.conversion.sites import feed_forward_sites
from planer.conversion.stored import build, describe_experts, describe_thresholds
from tests.unit.tiny_pretrained import WIDTH, tiny

EXPERT_SIZE, ROUTER_WIDTH = 4, 8


def converted(family: str) -> nn.Module:
    """Six experts of 4 neurons; all of them run."""
    model = tiny(family)
    generator = torch.Generator().manual_seed(3)
    for layer in make_dynamic(model, EXPERT_SIZE, ROUTER_WIDTH):
        with torch.no_grad():
            for weight in layer.router.parameters():
                weight.normal_(generator=generator)
            layer.quantiles.copy_(quantiles_of(layer.router(torch.randn(99, WIDTH, generator=generator))))
    mark(model, describe_experts(model))
    return model


def thresholded(family: str) -> nn.Module:
    """Thresholds on neurons for shares of 0.5 and 0.25, other ones in every layer; all neurons run."""
    model = tiny(family)
    names = [site.name for site in feed_forward_sites(model)]
    thetas = {share: {name: (i + 1) / share for i, name in enumerate(names)} for share in (0.5, 0.25)}
    description = describe_thresholds(model, Thresholds("product", thetas))
    build(model, description)
    mark(model, description)
    return model
