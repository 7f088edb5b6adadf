"""Feed-forward layers of pretrained networks that compute only the neurons of each token whose score is over theta.

Nothing is trained.  The score of neuron j, with the hidden activations h and, of a gated layer, the gate's g = act(z):

- ``gate``: |g_j|, or |h_j| without a gate (CATS, arXiv 2404.08763);
- ``product``: |h_j| ||w2_j||, the norm of what the neuron adds to the output.

Letters in shapes: N tokens, D model width, F neurons.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from planer.conversion.counter import Counter
from planer.conversion.sites import FeedForwardSite, feed_forward_sites
from planer.errors import UserError
from planer.kernels.activations import gated
from planer.kernels.neuron_threshold import SCORES, neuron_threshold, saves_time


class ThresholdFeedForward(nn.Module):
    """A feed-forward layer that computes the neurons with a score over ``theta``.  At 0 it equals the dense layer.

    Every token decides by itself, so that decoding equals a pass over the whole text.  For inference: over 0 there are
    no gradients.  The layer's weights stay where they are, under their names; nothing is saved with them.
    Few tokens of a layer of low density leave out products; else all products are computed, and then values left out.
    The kernel's table decides, by density and tokens.  Results differ by rounding.
    """

    dense: bool
    """Whether it runs as the dense layer now."""
    limits: Tensor
    """Of each neuron, the magnitude of g_j or h_j over which it runs, [F] in single precision; not saved."""

    def __init__(self, site: FeedForwardSite, theta: float, score: str, density: float = 1.0):
        super().__init__()
        self.name, self.score = site.name, score
        self.counter: Counter | None = None
        self._site = site  # no module: its parameters keep their names in the network
        self._activation = gated(site.activation) if site.gated else site.activation
        self.register_buffer("limits", torch.empty(0), persistent=False)
        self.set_theta(theta, density)

    def set_theta(self, theta: float, density: float = 1.0, fast: bool = False) -> None:
        """Compute the neurons with a score over theta from now on.  Raises UserError as ``limits`` does.

        density: the measured share of neurons with such a score; where it was not measured, all of them.
        fast: compute all neurons where leaving some out saves no time (``saves_time``).
        """
        self.density = density
        self.theta, self.limits = theta, limits(self._site, theta, self.score)
        nothing = not theta and self._site.activation != "relu"  # of ReLU, zeros are left out at 0
        self.dense = nothing or fast and not self.saves_time
        if not self.dense:
            self._site.store_by_neuron()

    @property
    def saves_time(self) -> bool:
        """Whether leaving out neurons is expected to save time, by the kernel's table for a single token.

        The answer does not depend on the tokens of a call, so that decoding equals a pass over the whole text.
        """
        weights = self._site.weights().w1
        return saves_time(weights.device, weights.dtype, self.density)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., D] to y [..., D], before dropout and residual.

        Raises ValueError in training mode where it leaves out neurons.
        """
        neurons = len(self.limits)
        if self.training and self.theta and not self.dense:
            raise ValueError(f"{self.name} leaves out neurons, which is for inference; call eval() or set theta to 0")
        if self.training or self.dense:
            if self.counter is not None:
                self.counter.add(self.name, torch.full(x.shape[:-1], neurons, device=x.device), neurons)
            return self._site.dense(x)
        weights = self._site.store_by_neuron()
        arguments = *weights.first(), weights.w2, weights.b2, self.limits, self.score
        y, executed = neuron_threshold(x.flatten(0, -2), *arguments, activation=self._activation, density=self.density)
        if self.counter is not None:
            self.counter.add(self.name, executed, neurons)
        return y.view(x.shape)


@torch.no_grad()
def output_norms(site: FeedForwardSite) -> Tensor:
    """||w2_j|| of every neuron, [F] in single precision."""
    return site.weights().w2.float().norm(dim=1)


@torch.no_grad()
def limits(site: FeedForwardSite, theta: float, score: str) -> Tensor:
    """The magnitude of g_j or h_j that has the score theta: [F] in single precision.

    Raises UserError for an unknown score, and for a theta that is negative or not finite.
    """
    if score not in SCORES:
        raise UserError(f"thresholds: score is {score!r}; allowed: {', '.join(SCORES)}")
    if not 0 <= theta < float("inf"):
        raise UserError(f"thresholds: theta of {site.name} is {theta:g}; allowed: numbers from 0")
    norms = output_norms(site)
    if theta == 0 or score == "gate":
        return torch.full_like(norms, theta)
    return theta / norms  # infinite where a neuron adds nothing


def threshold_layers(model: nn.Module) -> list[ThresholdFeedForward]:
    """The layers of a network with thresholds, in order."""
    return [module for module in model.modules() if isinstance(module, ThresholdFeedForward)]


def apply_thresholds(
    model: nn.Module, thetas: Mapping[str, float], score: str, densities: Mapping[str, float] | None = None
) -> list[ThresholdFeedForward]:
    """Put thresholds on the neurons of all feed-forward layers, in the place of those that are there.

    model: in transformers' classes.  thetas, densities: by the names of its feed-forward layers; densities where they
    were measured.
    Returns the layers, in order.  Raises UserError when a layer has no theta, or when one belongs to no layer.
    """
    sites = feed_forward_sites(model)
    if names := {site.name for site in sites} ^ thetas.keys():
        problem = "has no theta" if min(names) not in thetas else "is no feed-forward layer of this network"
        raise UserError(f"thresholds: {min(names)} {problem}; calibrate the thresholds on this network")
    known = densities or {}
    layers = [ThresholdFeedForward(site, thetas[site.name], score, known.get(site.name, 1.0)) for site in sites]
    for site, layer in zip(sites, layers, strict=True):
        site.replace(layer.train(site.layer.training))
    return layers
