"""Forward FLOPs of networks in transformers' classes, per real token, by closed forms.

A multiply-add of a matrix product is 2 FLOPs, as in torch's FlopCounterMode.  Elementwise work, embeddings' rows and
LayerNorm count nothing.  What is added for a conversion counts whole: routers, and one FLOP per comparison.
A token attends to all real tokens of its sequence, also where a causal mask hides half of them: that is what eager
attention computes.  Padding costs nothing.

Letters: D model width, F neurons, s neurons per expert, n experts, w router width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter

from torch import nn

from planer.conversion.sites import FeedForwardSite, feed_forward_sites
from planer.pretrained.adapters import adapter_for

ONCE = ("pooler.dense", "classifier")
"""Ends of the names of layers that read one token of a sequence; other layers of a head read all."""

SELECTION: dict[str, Callable[[int], float]] = {
    "dynamic_k": lambda n: 2 * n,
    "absolute": lambda n: n,
    "top_k": lambda n: n * math.log2(n),
    "cumulative": lambda n: n * math.log2(n) + 2 * n,
}
"""Comparisons and sums per token that choose among n scores: a maximum, a threshold, a sort, or running sums."""


@dataclass(frozen=True)
class NetworkFlops:
    """What the matrix products of a dense network cost."""

    layers: dict[str, float]
    """Feed-forward layers, and MLPs in the place of projections, by the names of their sites, per token."""
    projections: float
    """Of attention, but for those that were replaced, per token."""
    scores: float
    """Attention's two products with keys and values, per token and key."""
    head: float
    """Layers outside of the blocks, per token."""
    once: float
    """Layers that run once per sequence, such as a classifier; and the patches of an image."""

    def per_token(self, lengths: Sequence[int]) -> dict[str, float]:
        """Means per token, by part and their ``total``, for sequences of these numbers of real tokens."""
        tokens = sum(lengths)
        parts = {
            "projections": self.projections,
            "attention": self.scores * sum(length**2 for length in lengths) / tokens,
            "feed_forward": sum(self.layers.values()),
            "head": self.head + self.once * len(lengths) / tokens,
        }
        return parts | {"total": sum(parts.values())}


def network_flops(model: nn.Module) -> NetworkFlops:
    """FLOPs of a network in transformers' classes whose layers run densely.

    Raises UserError for layers that no adapter knows.
    """
    adapter, sites = adapter_for(model), feed_forward_sites(model)
    attentions = [module for _, module in adapter.find(model, adapter.attention)]
    placed = [attrgetter(path)(attention) for attention in attentions for path in adapter.projections]
    replaced = {site.layer: site.d_model for site in sites if site.is_projection}
    projections = [module for module in placed if module not in replaced]
    outputs = [attrgetter(adapter.projections[-1])(attention) for attention in attentions]
    inputs = 0 if adapter.input_major else 1
    counted = {*projections, *(module for site in sites for module in site.matrices)}
    rest = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear) and m not in counted]
    patches = (m for m in model.modules() if isinstance(m, nn.Conv2d))
    return NetworkFlops(
        {site.name: layer_flops(site) for site in sites},
        sum(2 * projection.weight.numel() for projection in projections),
        sum(4 * (replaced[o] if o in replaced else o.weight.shape[inputs]) for o in outputs),
        sum(2 * module.weight.numel() for name, module in rest if not name.endswith(ONCE)),
        sum(2 * module.weight.numel() for name, module in rest if name.endswith(ONCE))
        + sum(2 * patch.weight.numel() * _patches(model.config) for patch in patches),
    )


def layer_flops(site: FeedForwardSite) -> float:
    """FLOPs per token of a dense layer: 4 D F, gated 6 D F."""
    return 2 * _matrices(site) * site.d_model * site.d_inner


def experts_flops(site: FeedForwardSite, expert_size: int, width: int, rule: str, executed: float) -> float:
    """FLOPs per token of a layer split into experts: those executed, the router, and the rule that selects by it.

    executed: experts per token.  A router costs 2 w (D + n).  The rule ``all`` runs the dense layer without a router.
    """
    if rule == "all":
        return layer_flops(site)
    experts = site.d_inner // expert_size
    router = 2 * width * (site.d_model + experts)
    return executed * layer_flops(site) / experts + router + SELECTION[rule](experts)


def thresholded_flops(site: FeedForwardSite, score: str, kept: float) -> float:
    """FLOPs per token of a layer that skips neurons: dense products up to the score, then the rest for neurons kept.

    score: ``gate`` needs one product, ``product`` all but the last.  kept: neurons per token; with all of them the
    dense layer runs.
    """
    if kept == site.d_inner:
        return layer_flops(site)
    before = 1 if score == "gate" else _matrices(site) - 1
    return 2 * site.d_model * (before * site.d_inner + (_matrices(site) - before) * kept) + site.d_inner


def _matrices(site: FeedForwardSite) -> int:
    return 3 if site.gated else 2


def _patches(config) -> int:
    return (config.image_size // config.patch_size) ** 2
