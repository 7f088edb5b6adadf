"""Feed-forward layers of pretrained networks split into experts, of which each token executes those that it selects.

D2DMoE (arXiv 2310.04361) and MoEfication (arXiv 2110.01786) on any site: expert c owns neurons c*s to (c+1)*s - 1 of
the layer, whose weights stay where they are.  Only a router is added.
Letters in shapes: N tokens, D model width, F neurons, n experts, s = F / n neurons per expert.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from planer.blocks.dynamic_moe import Router
from planer.conversion.counter import Counter
from planer.conversion.norms import expert_norms, output_gram
from planer.conversion.selectors import ALL, GRID, Selector, expected_share, share_threshold
from planer.conversion.sites import FeedForwardSite, feed_forward_sites
from planer.errors import UserError
from planer.kernels.activations import gated
from planer.kernels.dynamic_ffn import dynamic_ffn, unsupported
from planer.kernels.routing import linear_fp32

BREAK_EVEN = {("cpu", torch.float32): 0.5}
"""Share of executed experts above which the dense layer is faster, by device and type of the weights.

Measured with the C++ kernel and its router beside PyTorch's dense layer, one thread of an Intel Xeon with AVX-512,
experts of 16 neurons, medians of interleaved calls: at a share of 0.5 a call takes 0.73 to 1.12 of the dense time for
1 token (layers 384 x 1536 and 768 x 3072), up to 1.17 for 16, 1.0 to 1.1 for 256, 0.8 to 0.9 for 1024; at 0.75 it
takes 0.96 to 1.5.  The machine had other work.
Where nothing is named, selecting experts was not measured to save time.  What was measured on the device at hand goes
before: ``DynamicFeedForward.break_even``."""
PROJECTION_BREAK_EVEN = 0.25
"""The same of MLPs in the place of attention projections, whose router is a larger part of the layer.

Measured alike, router width 128, on an idle machine.  Layers 384 x 192: at a share of 0.25 a call takes 2.3 of the
dense time for 1 token, 1.5 for 16 and 0.8 for 256; at 0.5 it takes 2.4, 1.6 and 1.1.  Layers 768 x 384: at 0.25 it
takes 1.4, 0.8 and 0.55; at 0.5 it takes 1.5, 0.9 and 0.8.  Encoders, which have them, read whole sequences."""


class LogitRouter(Router):
    """MoEfication's router: V2 tanh(V1 x), without biases, in single precision; larger for more active experts."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., n]."""
        return linear_fp32(torch.tanh(linear_fp32(x, self.v1)), self.v2)


ROUTERS = {"norm": Router, "moefication": LogitRouter}
"""By what a router is trained to predict: the norm of each expert's output, or which experts are active."""


class DynamicFeedForward(nn.Module):
    """A feed-forward layer that runs the experts which ``selector`` selects; at first all of them, as the dense layer.

    Every token selects by itself, so that its result depends on no other token: decoding equals a pass over the whole
    text.  For inference: with another selector than ALL there are no gradients.
    Raises UserError when the expert size does not divide the number of neurons.
    """

    quantiles: Tensor
    """Of the router's scores over calibration tokens, [3, GRID + 1] (``score_quantiles``); NaN before the calibration.

    They are saved with the router."""
    norm_quantiles: Tensor
    """Of the true norms, [GRID + 1], which only the oracle needs; not saved."""

    def __init__(self, site: FeedForwardSite, expert_size: int, router_width: int, target: str):
        """target: a key of ROUTERS.  The router's weights are zero until they are trained or loaded."""
        super().__init__()
        if expert_size < 1 or site.d_inner % expert_size:
            raise UserError(
                f"expert_size is {expert_size}; it must divide the neurons of {site.name}, which are {site.d_inner}"
            )
        self.name, self.is_projection, self.target = site.name, site.is_projection, target
        self.num_experts, self.expert_size = site.d_inner // expert_size, expert_size
        self.selector: Selector = ALL
        self.dense = True
        """Whether it runs as the dense layer now."""
        self.counter: Counter | None = None
        self.break_even: float | None = None
        """As BREAK_EVEN, measured with this network on the device where it is; None where it was not."""
        self.router = ROUTERS[target](site.d_model, router_width, self.num_experts)
        self.register_buffer("quantiles", torch.full((3, GRID + 1), torch.nan))
        self.register_buffer("norm_quantiles", torch.full((GRID + 1,), torch.nan), persistent=False)
        self._site = site  # no module: its parameters keep their names in the network
        self._activation = gated(site.activation) if site.gated else site.activation
        self._theta = 0.0
        self._random = torch.Generator()

    def select(self, selector: Selector, fast: bool = False) -> None:
        """Run by this selector from now on; random scores start anew.

        fast: run densely, without router, where the selector would save no time (``saves_time``).
        Raises UserError as ``theta_of``.
        """
        self._theta, self.selector = self.theta_of(selector), selector
        self.dense = selector == ALL or fast and not self.saves_time(selector)
        if not self.dense:
            self._site.store_by_neuron()
        self._random.manual_seed(0)

    def theta_of(self, selector: Selector) -> float:
        """The layer's threshold for ``absolute``; 0 for other rules, which need none.

        Raises UserError when the rule does not fit the routers or the number of experts, and for ``absolute`` before
        the calibration.
        """
        if selector.name == "top_k" and selector.value > self.num_experts:
            raise UserError(
                f"selector: top_k of {selector.value:g} exceeds the {self.num_experts} experts of {self.name}"
            )
        norms = self.target == "norm" or selector.scores != "router"
        if selector.name in ("dynamic_k", "cumulative") and not norms:
            raise UserError(
                f"selector: {selector.name} needs routers that predict norms; these were trained with target "
                f"{self.target}: use top_k or absolute"
            )
        if selector.name != "absolute":
            return 0.0
        uniform = torch.linspace(0, 1, GRID + 1)
        quantiles = {"router": self.quantiles[0], "oracle": self.norm_quantiles, "random": uniform}
        return share_threshold(quantiles[selector.scores], selector.value)

    def saves_time(self, selector: Selector) -> bool:
        """Whether a selector is expected to run faster than the dense layer, by the calibration and BREAK_EVEN.

        The answer does not depend on the tokens of a call, so that decoding equals a pass over the whole text.
        """
        weights, limit = self._site.weights().w1, self.break_even
        if limit is None:
            limit = BREAK_EVEN.get((weights.device.type, weights.dtype), 0.0)
            limit = min(limit, PROJECTION_BREAK_EVEN) if self.is_projection else limit
        shape = weights.shape[1], weights.shape[0]
        if not limit or weights.device.type == "cpu" and unsupported("cpp", weights.device, weights.dtype, *shape):
            return False
        return not expected_share(selector, self.quantiles, self.num_experts) > limit

    def forward(self, x: Tensor) -> Tensor:
        """x [..., D] to y [..., D], before dropout and residual."""
        if self.dense:
            if self.counter is not None:
                everything = torch.full(x.shape[:-1], self.num_experts, device=x.device)
                self.counter.add(self.name, everything, self.num_experts)
            return self._site.dense(x)
        if self.training:
            raise ValueError(f"{self.name} selects experts, which is for inference; call eval() or select all")
        tokens = x.flatten(0, -2)
        mask = self.mask(tokens)
        if self.counter is not None:
            self.counter.add(self.name, mask.sum(-1), self.num_experts)
        weights = self._site.store_by_neuron()
        y = dynamic_ffn(tokens, *weights.first(), weights.w2, weights.b2, mask, activation=self._activation)
        return y.view_as(x)

    def mask(self, x: Tensor) -> Tensor:
        """The experts that each token runs: x [N, D] to [N, n] bool."""
        return self.selector.mask(self._scores(x), self._theta)

    def _scores(self, x: Tensor) -> Tensor:
        match self.selector.scores:
            case "router":
                return self.router(x)
            case "oracle":
                return self.norms(x)
        return torch.rand(len(x), self.num_experts, generator=self._random).to(x.device)

    def norms(self, x: Tensor) -> Tensor:
        """Norm of each expert's output: x [N, D] to [N, n]."""
        return expert_norms(self._site.hidden(x), self.gram())

    def gram(self) -> Tensor:
        """output_gram of the layer's weights: [n, s, s]."""
        return output_gram(self._site.weights().w2, self.num_experts)


def make_dynamic(
    model: nn.Module, expert_size: int, router_width: int, target: str = "norm"
) -> list[DynamicFeedForward]:
    """Split all feed-forward layers of a network into experts of ``expert_size`` successive neurons.

    model: in transformers' classes, with its neurons sorted (``clusters.apply_labels``).  The network computes the
    same until ``set_selector``.  Raises UserError when the expert size does not divide the neurons of a layer.
    """
    sites = feed_forward_sites(model)
    layers = [DynamicFeedForward(site, expert_size, router_width, target) for site in sites]
    for site, layer in zip(sites, layers, strict=True):
        weight = site.weights().w1
        layer.to(weight.device).train(site.layer.training)
        site.replace(layer)
    return layers


def dynamic_layers(model: nn.Module) -> list[DynamicFeedForward]:
    """The split layers of a network, in the order of ``feed_forward_sites``."""
    layers = [module for module in model.modules() if isinstance(module, DynamicFeedForward)]
    return sorted(layers, key=lambda layer: layer.is_projection)


def keep_break_even(model: nn.Module, share: float | None) -> None:
    """Have the feed-forward layers of a network run densely above a measured share; None for BREAK_EVEN.

    MLPs in the place of projections keep theirs.
    """
    for layer in dynamic_layers(model):
        if not layer.is_projection:
            layer.break_even = share


def set_selector(model: nn.Module, selector: Selector, fast: bool = False) -> None:
    """Run all split layers of a network by this selector.

    fast: layers run densely where the selector would save no time; more experts than selected then run.
    Raises UserError when the selector does not fit a layer; all then run as before.
    """
    layers = dynamic_layers(model)
    for layer in layers:
        layer.theta_of(selector)
    for layer in layers:
        layer.select(selector, fast)
