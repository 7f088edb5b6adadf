"""A feed-forward layer of which one neuron a block runs (Sparse is Enough in Scaling Transformers, arXiv 2111.12763).

    l = C2 C1 x + c        the controller's logits, F numbers in F / N blocks of N
    y = W2^T (relu(W1 x + b1) * mask) + b2

Inference: the mask is 1 for the neuron with the largest logit of each block, of equal ones for the first.
Training follows trax (trax/layers/research/sparsity.py).  p is the softmax of a block's logits.  In a share
``hard_share`` of the calls the mask is one-hot at argmax(log p + temperature * Gumbel noise), so that the neuron is
sampled from softmax(l / temperature), and its gradient is that of p (straight-through).  In the other calls the mask
is p.  One coin decides for a whole call.  All neurons are computed.

b1 is the paper's; trax has none.  c and the biases start at 0, where trax draws N(0, 1e-6): LAMB would keep weights
that start so small almost where they are.

Letters in shapes: T tokens, D model width, F neurons, N neurons of a block, n = F / N blocks, r rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planer.blocks.block import Block, Source, set_weight
from planer.blocks.feed_forward import widened
from planer.initial import glorot_uniform, scaled
from planer.kernels.routing import linear_fp32
from planer.specs import Architecture
from planer.specs import sparse_feed_forward as specs


class Controller(nn.Module):
    """Logits of the neurons, in at least single precision: rounded ones would pick other neurons."""

    initial = {"c1": glorot_uniform, "c2": glorot_uniform}

    def __init__(self, d_model: int, rank: int, d_inner: int):
        super().__init__()
        self.c1 = nn.Parameter(torch.zeros(rank, d_model))
        self.c2 = nn.Parameter(torch.zeros(d_inner, rank))
        self.bias = nn.Parameter(torch.zeros(d_inner))

    def forward(self, x: Tensor) -> Tensor:
        """[T, D] to [T, F]."""
        return linear_fp32(linear_fp32(x, self.c1), self.c2) + self.bias


class SparseFeedForward(nn.Module):
    """Both weights are neuron-major [F, D]; block b owns the neurons b * N to (b + 1) * N - 1."""

    def __init__(self, spec: specs.SparseFeedForward, d_model: int, dropout: float):
        super().__init__()
        self.spec = spec
        self.w1 = nn.Parameter(torch.zeros(spec.d_inner, d_model))
        self.b1 = nn.Parameter(torch.zeros(spec.d_inner))
        self.w2 = nn.Parameter(torch.zeros(spec.d_inner, d_model))
        self.b2 = nn.Parameter(torch.zeros(d_model))
        self.controller = Controller(d_model, spec.rank_in(d_model), spec.d_inner)
        self.dropout = nn.Dropout(dropout)
        w2 = scaled(glorot_uniform, math.sqrt(spec.block_size)) if spec.scaled else glorot_uniform
        self.initial = {"w1": glorot_uniform, "w2": w2}

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., D]; each position on its own."""
        tokens = x.flatten(0, -2)
        logits = self.controller(tokens).unflatten(-1, (-1, self.spec.block_size))
        if self.training:
            y = self._masked(tokens, self.training_mask(logits))
        elif self.spec.gathers(len(tokens)):
            y = self._gathered(tokens, logits)
        else:
            y = self._masked(tokens, self.inference_mask(logits))
        return self.dropout(y).view_as(x)

    def training_mask(self, logits: Tensor) -> Tensor:
        """The random mask of a training call: [T, n, N] to [T, n, N].  Draws from PyTorch's global generator."""
        soft = logits.softmax(-1)
        with torch.no_grad():
            uniform = torch.empty_like(logits).uniform_(1e-6, 1 - 1e-6)
            picked = _one_hot(logits - self.spec.temperature * (-uniform.log()).log())
            is_hard = torch.rand((), device=logits.device) < self.spec.hard_share
        hard = soft + (picked - soft).detach()  # exactly 0 and 1
        return torch.where(is_hard, hard * soft.detach() if self.spec.weighted else hard, soft)

    def inference_mask(self, logits: Tensor) -> Tensor:
        """[T, n, N] to [T, n, N]: 1, or its probability, for the picked neuron of each block."""
        return _one_hot(logits) * (logits.softmax(-1) if self.spec.weighted else 1)

    def _masked(self, x: Tensor, mask: Tensor) -> Tensor:
        """All neurons: [T, D] and [T, n, N] to [T, D]."""
        hidden = F.linear(x, self.w1, self.b1).unflatten(-1, (-1, self.spec.block_size))
        mask = mask.to(hidden.dtype)
        hidden = (hidden * mask).relu() if self.spec.relu == "after" else hidden.relu() * mask
        return F.linear(hidden.flatten(1), self.w2.t(), self.b2)

    def _gathered(self, x: Tensor, logits: Tensor) -> Tensor:
        """The picked neurons alone: [T, D] and [T, n, N] to [T, D]."""
        picked = logits.argmax(-1)
        neurons = picked + torch.arange(0, len(self.w1), self.spec.block_size, device=picked.device)
        hidden = ((self.w1[neurons] @ x[:, :, None]).squeeze(-1) + self.b1[neurons]).relu()
        if self.spec.weighted:
            hidden = hidden * logits.softmax(-1).amax(-1)
        return (hidden[:, None].to(x.dtype) @ self.w2[neurons]).squeeze(1) + self.b2


def _one_hot(logits: Tensor) -> Tensor:
    """1 at the largest entry of the last axis."""
    return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)


class SparseFeedForwardBlock(Block):
    """A sparse feed-forward layer with its residual and LayerNorm."""

    def start(self, source: Source, by_importance: bool = False, noise: Callable[[Tensor], None] | None = None) -> None:
        """Take w1, b1, w2 and b2 of the parent's nearest feed-forward layer; the controller stays random.

        The output is another one: of N neurons that the parent adds up, one is left.  The parent's own sparse layer is
        copied as ``Source.copied`` says.
        """
        layer = self.sublayer
        if source.copied is not None:
            layer.load_state_dict(source.copied.sublayer.state_dict())
        elif source.nearest is not None:
            w1, b1, w2, b2 = widened(source.nearest.sublayer, len(layer.w1))
            pairs = ((layer.w1, w1), (layer.b1, b1), (layer.w2, w2.t()), (layer.b2, b2))
            for weight, value in pairs:
                set_weight(weight, value)


def build(spec: specs.SparseFeedForward, shared: Architecture) -> SparseFeedForwardBlock:
    return SparseFeedForwardBlock(SparseFeedForward(spec, shared.d_model, shared.dropout), shared.d_model, shared.norm)
