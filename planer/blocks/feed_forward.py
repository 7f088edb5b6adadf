"""The position-wise feed-forward layer: W2 dropout(relu(W1 x + b1)) + b2."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from planer import specs
from planer.blocks.block import Aux, Block, Source, Wants, repeated, set_weight


class FeedForward(nn.Module):
    """Two linear maps around a ReLU."""

    splits = True

    def __init__(self, spec: specs.FeedForward, d_model: int, dropout: float):
        super().__init__()
        self.w1 = nn.Linear(d_model, spec.d_inner)
        self.activation = nn.ReLU(inplace=True)
        self.w2 = nn.Linear(spec.d_inner, d_model)
        self.dropout = nn.Dropout(dropout)

    @property
    def linears(self) -> tuple[nn.Linear, nn.Linear]:
        """The maps before and after the activation."""
        return self.w1, self.w2

    def forward(self, x: Tensor, wants: Wants = ()) -> tuple[Tensor, Aux]:
        """[..., D] to [..., D], each position on its own; and ``activations`` where wanted."""
        hidden = self.activation(self.w1(x))
        y = self.dropout(self.w2(self.dropout(hidden)))
        return y, {"activations": hidden} if "activations" in wants else {}


class FeedForwardBlock(Block):
    """A feed-forward layer with its residual and LayerNorm."""

    def run(self, x: Tensor, wants: Wants) -> tuple[Tensor, Aux]:
        return self.sublayer(x, wants)

    def start(self, source: Source, by_importance: bool = False, noise: Callable[[Tensor], None] | None = None) -> None:
        """Take the weights of the parent's nearest feed-forward layer."""
        if source.nearest is None:
            return
        layer = self.sublayer
        weights = (layer.w1.weight, layer.w1.bias, layer.w2.weight, layer.w2.bias)
        for weight, value in zip(weights, widened(source.nearest.sublayer, layer.w1.out_features), strict=True):
            set_weight(weight, value)


def widened(source: FeedForward, neurons: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """w1 [I, D], b1 [I], w2 [D, I] and b2 [D] of a layer with this number of neurons that computes the same.

    Where it has more neurons than its source, they are repeated, and their outputs divided by how often.
    """
    chosen, share = repeated(torch.arange(source.w1.out_features, device=source.w1.weight.device), neurons)
    return source.w1.weight[chosen], source.w1.bias[chosen], source.w2.weight[:, chosen] * share, source.w2.bias


def build(spec: specs.FeedForward, shared: specs.Architecture) -> FeedForwardBlock:
    return FeedForwardBlock(FeedForward(spec, shared.d_model, shared.dropout), shared.d_model, shared.norm)
