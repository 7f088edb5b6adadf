"""Operating points of a converted network: by what it skips work, how far, and what that costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from torch import nn

from planer.config.arms import fitting_selectors
from planer.conversion.dynamic import dynamic_layers, set_selector
from planer.conversion.neuron_threshold import Thresholds
from planer.conversion.selectors import ALL, Selector
from planer.conversion.site_routers import CALIBRATED_TOKENS, calibrate
from planer.conversion.sites import FeedForwardSite, feed_forward_sites
from planer.conversion.threshold_layer import apply_thresholds
from planer.evaluation.arms.flops import experts_flops, thresholded_flops
from planer.tasks.pretrained_task import PretrainedTask

if TYPE_CHECKING:
    from planer.config.pretrained import ArmEvaluateConfig


@dataclass(frozen=True)
class Point:
    """One way to run a converted network."""

    selector: str
    value: float
    bound: str | None
    """``oracle`` or ``random`` in the place of what the network has learned."""
    units: int
    """Experts, or neurons, of a layer."""
    apply: Callable[[nn.Module], object]
    """Run the network, or a copy of it, at this point from now on."""
    layer_flops: Callable[[FeedForwardSite, float], float]
    """FLOPs per token of a layer from the experts, or neurons, that it executes per token."""


def expert_points(model: nn.Module, config: ArmEvaluateConfig) -> list[Point]:
    """All experts, then every selector at every value.  Rules that do not fit are left out.

    Raises UserError when no rule is left.
    """
    layers = dynamic_layers(model)
    alike = len({layer.num_experts for layer in layers}) == 1
    rules = fitting_selectors(config.selectors, layers[0].target, alike)
    selectors = (Selector(rule, value) for rule in rules for value in values_of(rule, model, config))
    return [_expert_point(model, selector) for selector in (ALL, *selectors)]


def values_of(rule: str, model: nn.Module, config: ArmEvaluateConfig) -> Sequence[float]:
    """Values at which a rule is evaluated, in rising order: thresholds, experts of a token, or shares."""
    if rule == "dynamic_k":
        return sorted(set(config.taus))
    if rule == "top_k":
        experts = dynamic_layers(model)[0].num_experts
        return sorted({max(1, round(share * experts)) for share in config.shares})
    return sorted(set(config.shares))


def first_rule(points: Sequence[Point]) -> str:
    """The selector that an arm is timed with and bounded for: the first that skips work."""
    return next((point.selector for point in points if point.selector != "all"), "all")


def bound_points(
    model: nn.Module, config: ArmEvaluateConfig, points: Sequence[Point], rows: Sequence[dict]
) -> list[Point]:
    """Bounds of the arm's first rule, from its rows.

    oracle: the same rule and values on the true norms.  random: as many executed experts on average, whichever.
    """
    first = [row for row in rows if row["selector"] == first_rule(points)]
    found = []
    if "oracle" in config.bounds:
        found += [Selector(row["selector"], row["value"], "oracle") for row in first]
    if "random" in config.bounds:
        shares = sorted({round(row["executed_share"], 4) for row in first} - {0})
        found += [Selector("absolute", share, "random") for share in shares]
    return [_expert_point(model, selector) for selector in found]


def threshold_points(model: nn.Module, thresholds: Thresholds) -> list[Point]:
    """Thresholds of 0, which leave out nothing but zeros, then those of every wanted share in rising order."""
    nothing = dict.fromkeys(next(iter(thresholds.thetas.values())), 0.0)
    score, units = thresholds.score, feed_forward_sites(model)[0].d_inner
    wanted = sorted(thresholds.thetas)
    found = [("all", 0.0, nothing, None)]
    found += [(score, share, thresholds.thetas[share], thresholds.densities[share]) for share in wanted]
    return [
        Point(
            name,
            share,
            None,
            units,
            partial(apply_thresholds, thetas=thetas, score=score, densities=densities),
            lambda site, kept: thresholded_flops(site, score, kept),
        )
        for name, share, thetas, densities in found
    ]


def calibrate_norms(model: nn.Module, task: PretrainedTask) -> None:
    """Fill the quantiles of true norms, which the rule ``absolute`` on them needs; those of routers stay as stored."""
    stored = [layer.quantiles.clone() for layer in dynamic_layers(model)]
    calibrate(model, task, CALIBRATED_TOKENS, task.runtime.derive("calibration"))
    for layer, quantiles in zip(dynamic_layers(model), stored, strict=True):
        layer.quantiles.copy_(quantiles)


def _expert_point(model: nn.Module, selector: Selector) -> Point:
    layer = dynamic_layers(model)[0]
    width = layer.router.v1.shape[0]
    return Point(
        selector.name,
        selector.value,
        None if selector.scores == "router" else selector.scores,
        layer.num_experts,
        partial(set_selector, selector=selector),
        lambda site, executed: experts_flops(site, layer.expert_size, width, selector.name, executed),
    )
