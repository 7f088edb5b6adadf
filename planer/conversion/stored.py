"""How a converted network is described in its config.json, and its layers built again from that description.

Weights are elsewhere: those of the layers under their usual names, those of routers beside them.  Descriptions name no
layer, since the names of layers differ between heads.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from planer.conversion.dynamic import dynamic_layers, make_dynamic, set_selector
from planer.conversion.selectors import Selector

EXPERTS = ("expert_size", "router_width", "target")


def conversion_of(model: nn.Module) -> dict:
    """The description, of JSON values.  Raises ValueError for a network that is not converted, or runs a bound."""
    layers = dynamic_layers(model)
    if not layers or layers[0].selector.scores != "router":
        raise ValueError(f"{type(model).__name__} has no converted layers that select experts by their routers")
    layer = layers[0]
    shape = {"expert_size": layer.expert_size, "router_width": len(layer.router.v1), "target": layer.target}
    return {"kind": "experts", **shape, "selector": layer.selector.name, "value": layer.selector.value}


def build(model: nn.Module, conversion: Mapping) -> None:
    """Put converted layers, without weights, into the network of a description.

    Raises UserError when they do not fit each other.
    """
    make_dynamic(model, **{name: conversion[name] for name in EXPERTS})


def finish(model: nn.Module, conversion: Mapping) -> None:
    """Run the converted layers, which have their weights now, as the description says."""
    for layer in dynamic_layers(model):
        layer.norm_quantiles.fill_(torch.nan)  # not saved, so that transformers leaves it without values
    select(model, conversion["selector"], conversion["value"])


def select(model: nn.Module, name: str, value: float) -> None:
    """Run all converted layers by a rule of selectors.py.  Raises UserError when it does not fit them."""
    set_selector(model, Selector(name, value))
