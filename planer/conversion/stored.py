"""How a converted network is described in its config.json, and its layers built again from that description.

Weights are elsewhere: those of the layers under their usual names, those of routers beside them.  Descriptions name no
layer, since the names of layers differ between heads; thresholds are in the order of the layers.  Keys:

- ``kind``: experts, or thresholds on neurons;
- of experts ``expert_size``, ``router_width``, ``target``: the arguments of ``make_dynamic``; ``break_even``, the share
  of executed experts up to which layers were measured to be faster than dense, with the device and dtype, or None;
- of thresholds ``score``, and by the wanted share of neurons ``thetas`` of all layers, and ``densities``, the measured
  shares of their neurons that run, which decide between sparse and dense products (without them, as 1);
- ``selector``, ``value``: how the layers run.  ``all`` is the dense network.  Of experts a rule of selectors.py and its
  value; of thresholds the score and a share.
- ``fast``: layers run densely where leaving out experts or neurons saves no time on the device that loads them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real

import torch
from torch import nn

from planer.conversion.dynamic import DynamicFeedForward, dynamic_layers, keep_break_even, make_dynamic, set_selector
from planer.conversion.neuron_threshold import Thresholds
from planer.conversion.selectors import Selector
from planer.conversion.sites import feed_forward_sites
from planer.conversion.threshold_layer import apply_thresholds
from planer.errors import UserError
from planer.parsing import show
from planer.runtime import device_name

DENSE = {"selector": "all", "value": 0, "fast": True}
EXPERTS = ("expert_size", "router_width", "target")


def describe_experts(model: nn.Module, break_even: Mapping | None = None) -> dict:
    """The description, of JSON values, of a network whose layers are split into experts; it runs all of them.

    break_even: share, device (``planer.runtime.device_name``) and dtype of a measurement.
    """
    shape = dict(zip(EXPERTS, _shape(dynamic_layers(model)[0]), strict=True))
    return {"kind": "experts", **shape, "break_even": break_even and dict(break_even), **DENSE}


def _shape(layer: DynamicFeedForward) -> tuple[int, int, str]:
    return layer.expert_size, len(layer.router.v1), layer.target


def describe_thresholds(model: nn.Module, thresholds: Thresholds) -> dict:
    """The description of a network with these thresholds; it runs all neurons.  model: converted or not."""
    names = [site.name for site in feed_forward_sites(model)]
    thetas, densities = (
        {str(share): [of[name] for name in names] for share, of in sorted(table.items())}
        for table in (thresholds.thetas, thresholds.densities)
    )
    return {"kind": "thresholds", "score": thresholds.score, "thetas": thetas, "densities": densities, **DENSE}


def build(model: nn.Module, description: Mapping) -> None:
    """Put converted layers, without weights, into the network of a description.

    Raises UserError when they do not fit each other.
    """
    match description.get("kind"):
        case "experts":
            make_dynamic(model, **{name: description[name] for name in EXPERTS})
        case "thresholds":
            apply_thresholds(model, {site.name: 0.0 for site in feed_forward_sites(model)}, description["score"])
        case kind:
            raise UserError(f"quantization_config: kind is {show(kind)}; allowed: experts, thresholds")


def select(model: nn.Module, description: Mapping, **setting: str | float | bool) -> dict:
    """Run all converted layers, which have their weights, in another way from now on; return its description.

    setting: selector, value and fast; by default as the description has them.
    Raises UserError when it does not fit the network.
    """
    description = {**description, **setting}
    selector, value = description["selector"], description["value"]
    if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
        raise UserError(f"selector: {selector} of {show(value)}; give a finite number")
    description["value"] = value = value if isinstance(value, int) else float(value)  # config.json takes no NumPy
    if description["kind"] == "experts":
        keep_break_even(model, _measured_here(model, description.get("break_even")))
        set_selector(model, Selector(selector, value), description["fast"])
    else:
        layers = [site.layer.replacement for site in feed_forward_sites(model)]
        for layer, threshold in zip(layers, _thresholds(description, len(layers), selector, value), strict=True):
            layer.set_theta(*threshold, description["fast"])
    return description


def _measured_here(model: nn.Module, measured: Mapping | None) -> float | None:
    """The measured share, where the network is on such a device and in this type; else None."""
    weight = dynamic_layers(model)[0].router.v1
    here = device_name(weight.device), str(weight.dtype).removeprefix("torch.")
    return measured["share"] if measured and (measured["device"], measured["dtype"]) == here else None


def start(model: nn.Module, description: Mapping) -> None:
    """Run the converted layers of a loaded network as the description says."""
    for layer in dynamic_layers(model):
        layer.norm_quantiles.fill_(torch.nan)  # it is not saved, and transformers leaves it without values
    select(model, description)


def _thresholds(description: Mapping, layers: int, selector: str, share: float) -> list[tuple[float, float]]:
    """Theta and density of every layer, for a selector of a network with thresholds."""
    if selector == "all":
        return [(0.0, 1.0)] * layers
    score, known = description["score"], description["thetas"]
    if selector != score or str(float(share)) not in known:
        allowed = ", ".join(f"{score} {share}" for share in known)
        raise UserError(f"selector: {selector} {share:g} is not calibrated; allowed: all, {allowed}")
    key = str(float(share))
    thetas, densities = known[key], description.get("densities", {}).get(key, [1.0] * layers)
    if {len(thetas), len(densities)} != {layers}:
        raise UserError(f"quantization_config: thresholds for {len(thetas)} layers, the network has {layers}")
    return list(zip(thetas, densities, strict=True))
