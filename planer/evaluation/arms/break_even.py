"""Up to which share of executed experts layers are faster than the dense ones, on the device at hand.

Layers are timed one after another, so that their weights come from memory as in a whole network.  Inputs are random;
every token executes the same number of experts, its own ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from planer.conversion.dynamic import DynamicFeedForward, dynamic_layers
from planer.conversion.selectors import ALL, Selector
from planer.conversion.sites import feed_forward_sites
from planer.measure import by_round, measure

SHARES = (0.1, 0.25, 0.5, 0.75, 1.0)
TOKENS = (1, 16, 256)
"""Tokens of a call.  Layers must be faster for each: whether they run densely does not depend on the call."""
LAYERS = 8
"""Largest number of layers that are timed."""
ROUNDS, MAX_SECONDS = 9, 10.0
"""Of each number of tokens."""


@torch.inference_mode()
def break_even(model: nn.Module, dense: nn.Module, device: torch.device, seed: int) -> float:
    """The largest of SHARES up to which selecting experts takes no longer than the dense layers; 0 where none is.

    model: with split layers.  dense: the network that was not converted, whose weights have their usual order in
    memory.  Both in eval mode, with weights on the device and in the type to measure.  The model's layers run all
    experts afterwards.
    """
    sites, found = feed_forward_sites(dense)[:LAYERS], len(SHARES)
    layers = dynamic_layers(model)[: len(sites)]  # projections, which the dense network lacks, come behind them
    weight = layers[0].router.v1
    for tokens in TOKENS:
        x = torch.randn(tokens, weight.shape[1], generator=torch.Generator().manual_seed(seed)).to(weight)
        calls = {"dense": lambda x=x: [site.dense(x) for site in sites]}
        calls |= {str(share): _selecting(layers, x, share) for share in SHARES[:found]}
        ms = by_round(measure(calls, ROUNDS, 1, seed, MAX_SECONDS, device, f"break-even, {tokens} tokens"))
        ratios = [(ms[str(share)] / ms["dense"]).median() for share in SHARES[:found]]
        found = next((place for place, ratio in enumerate(ratios) if ratio > 1), found)
    for layer in layers:
        layer.select(ALL)
    return SHARES[found - 1] if found else 0.0


def _selecting(layers: Sequence[DynamicFeedForward], x: Tensor, share: float) -> Callable[[], None]:
    """A call of all layers with this share of experts."""
    selector = Selector("top_k", max(1, round(share * layers[0].num_experts)))

    def call() -> None:
        for layer in layers:
            layer.select(selector)
            layer(x)

    return call
