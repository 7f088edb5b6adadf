"""The position-wise feed-forward layer: W2 dropout(relu(W1 x + b1)) + b2."""

from __future__ import annotations

from torch import Tensor, nn

from planer import specs
from planer.blocks.block import Block


class FeedForward(nn.Module):
    """Two linear maps around a ReLU.  The output of ``activation`` is what sparsification penalises."""

    def __init__(self, spec: specs.FeedForward, d_model: int, dropout: float):
        super().__init__()
        self.w1 = nn.Linear(d_model, spec.d_inner)
        self.activation = nn.ReLU(inplace=True)
        self.w2 = nn.Linear(spec.d_inner, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., D]; each position on its own."""
        return self.dropout(self.w2(self.dropout(self.activation(self.w1(x)))))


def build(spec: specs.FeedForward, shared: specs.Architecture) -> Block:
    """The block that a specification describes."""
    return Block(FeedForward(spec, shared.d_model, shared.dropout), shared.d_model, shared.norm)
