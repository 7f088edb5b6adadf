"""A mixture of feed-forward experts with a softmax router (Switch Transformer, arXiv 2101.03961; GShard for top-2).

Letters in shapes: N tokens, D model width, E experts, I neurons of an expert.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planer import specs
from planer.blocks.block import Aux, Block, Source, Wants, set_weight
from planer.blocks.feed_forward import widened
from planer.kernels.expert_ffn import expert_ffn
from planer.kernels.routing import route


class Experts(nn.Module):
    """The stacked weights of equally large feed-forward experts; several routers may share them.

    Each parameter carries ``stacked = True``: an optimiser that scales updates by the norm of a weight treats every
    expert as a weight of its own.
    """

    def __init__(self, num_experts: int, d_inner: int, d_model: int):
        super().__init__()
        self.w1 = nn.Parameter(torch.zeros(num_experts, d_inner, d_model))
        self.b1 = nn.Parameter(torch.zeros(num_experts, d_inner))
        self.w2 = nn.Parameter(torch.zeros(num_experts, d_model, d_inner))
        self.b2 = nn.Parameter(torch.zeros(num_experts, d_model))
        for parameter in self.parameters():
            parameter.stacked = True


class MoE(nn.Module):
    """Every token goes through its top_k experts, weighted by the router."""

    def __init__(self, spec: specs.MoE, d_model: int, dropout: float):
        super().__init__()
        self.top_k = spec.top_k
        self.gate = nn.Parameter(torch.zeros(spec.num_experts, d_model))
        self.experts = Experts(spec.num_experts, spec.d_inner, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, wants: Wants = ()) -> tuple[Tensor, Aux]:
        """[..., D] to [..., D], each position on its own; and ``load`` and, in training, ``balance`` where wanted."""
        tokens = x.flatten(0, -2)
        balanced = self.training and "balance" in wants
        pairs, probabilities, plan = route(tokens, self.gate, self.top_k, probabilities=balanced)
        aux = {}
        if balanced or "load" in wants:
            aux["load"] = plan.offsets.diff()
        if balanced:
            aux["balance"] = balance_loss(aux["load"], probabilities)
        e = self.experts
        y = expert_ffn(tokens, e.w1, e.b1, e.w2, e.b2, pairs, self.dropout.p, self.training, plan=plan)
        return self.dropout(y).view_as(x), aux


class MoEBlock(Block):
    """A mixture of experts with its residual and LayerNorm."""

    def run(self, x: Tensor, wants: Wants) -> tuple[Tensor, Aux]:
        return self.sublayer(x, wants)

    def start(self, source: Source, by_importance: bool = False, noise: Callable[[Tensor], None] | None = None) -> None:
        """Every expert is the parent's nearest feed-forward layer (sparse upcycling, arXiv 2212.05055).

        For top-1, whose output is weighted by the router's probability, w2 and b2 are divided by that probability's
        mean.  The parent's own mixture in the same place is copied.  The router keeps its random weights.
        """
        layer = self.sublayer
        if self._is_as(source.same_place):
            layer.load_state_dict(source.same_place.sublayer.state_dict())
            return
        experts = layer.experts
        if source.nearest is not None:
            w1, b1, w2, b2 = widened(source.nearest.sublayer, experts.w1.shape[1])
            scale = 1 / self._mean_probability(source.inputs) if layer.top_k == 1 else 1.0
            pairs = ((experts.w1, w1), (experts.b1, b1), (experts.w2, w2 * scale), (experts.b2, b2 * scale))
            for parameter, copied in pairs:
                set_weight(parameter, copied.expand_as(parameter))
        if noise:
            noise(experts.w1)
            noise(experts.w2)

    def _is_as(self, other: Block | None) -> bool:
        """Whether another block is a mixture of as many experts of the same size, of which a token takes as many."""
        if not isinstance(other, MoEBlock) or other.sublayer.top_k != self.sublayer.top_k:
            return False
        return other.sublayer.experts.w1.shape == self.sublayer.experts.w1.shape

    def _mean_probability(self, inputs: Tensor) -> Tensor:
        """Of the expert that a token of the inputs [N, D] prefers."""
        logits = F.linear(self.norm(inputs) if self.pre_norm else inputs, self.sublayer.gate)
        return logits.softmax(-1).amax(-1).mean()

    def share(self, owner: MoEBlock) -> None:
        """Use the experts of another mixture, with a separate router."""
        self.sublayer.experts = owner.sublayer.experts

    def rerouted(self, change: Callable[[Tensor], None]) -> MoEBlock:
        """The block with a changed router, on the same experts."""
        experts = self.sublayer.experts
        other = copy.deepcopy(self, {id(experts): experts})
        change(other.sublayer.gate)
        return other


def build(spec: specs.MoE, shared: specs.Architecture) -> MoEBlock:
    return MoEBlock(MoE(spec, shared.d_model, shared.moe_dropout), shared.d_model, shared.norm)


def balance_loss(load: Tensor, probabilities: Tensor) -> Tensor:
    """E sum_e f_e p_e: f_e the share of assignments that expert e received, p_e its mean router probability.

    load: [E] assignments; probabilities: [N, E].  1 when balanced, E when one expert takes all (Switch, eq. 4), and 0
    without tokens.
    """
    if not probabilities.shape[0]:
        return probabilities.sum()
    share = load / load.sum()
    return load.shape[0] * (share * probabilities.mean(dim=0)).sum()
