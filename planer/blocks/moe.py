"""A mixture of feed-forward experts behind a softmax gate (Switch Transformer, arXiv 2101.03961; GShard for top-2).

Letters in shapes: N tokens, D model width, E experts, I neurons of an expert.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from planer import specs
from planer.blocks.block import Block
from planer.kernels.expert_ffn import expert_ffn
from planer.kernels.routing import route


class Experts(nn.Module):
    """The stacked weights of equally large feed-forward experts; several gates may share them.

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
    """Every token goes through its top_k experts, weighted by the gate.

    After a forward pass in training, ``balance`` holds the load-balancing loss of that pass; after any forward pass,
    ``load`` holds the number of tokens that each expert received, [E].
    """

    balance: Tensor | None = None
    load: Tensor | None = None

    def __init__(self, spec: specs.MoE, d_model: int, dropout: float, experts: Experts | None = None):
        super().__init__()
        self.top_k = spec.top_k
        self.gate = nn.Parameter(torch.zeros(spec.num_experts, d_model))
        self.experts = experts or Experts(spec.num_experts, spec.d_inner, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., D]; each position on its own."""
        tokens = x.flatten(0, -2)
        pairs, probabilities, grouped = route(tokens, self.gate, self.top_k, probabilities=self.training)
        self.load = grouped.offsets.diff()
        self.balance = balance_loss(self.load, probabilities) if self.training else None
        e = self.experts
        y = expert_ffn(tokens, e.w1, e.b1, e.w2, e.b2, pairs, self.dropout.p, self.training, grouped=grouped)
        return self.dropout(y).view_as(x)


def build(spec: specs.MoE, shared: specs.Architecture) -> Block:
    """The block that a specification describes."""
    return Block(MoE(spec, shared.d_model, shared.moe_dropout), shared.d_model, shared.norm)


def balance_loss(load: Tensor, probabilities: Tensor) -> Tensor:
    """E sum_e f_e p_e: f_e the share of assignments that expert e received, p_e its mean gate probability.

    load: [E] assignments; probabilities: [N, E].  1 when balanced, E when one expert takes all (Switch, eq. 4), and 0
    without tokens.
    """
    if not probabilities.shape[0]:
        return probabilities.sum()
    share = load / load.sum()
    return load.shape[0] * (share * probabilities.mean(dim=0)).sum()
