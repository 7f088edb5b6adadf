"""The position-wise feed-forward layer: W2 dropout(relu(W1 x + b1)) + b2."""

from __future__ import annotations

from torch import Tensor, nn

from planer import architecture


class FeedForward(nn.Module):
    """Two linear maps around a ReLU.  The output of ``activation`` is what sparsification penalises."""

    def __init__(self, spec: architecture.FeedForward, d_model: int, dropout: float):
        super().__init__()
        self.w1 = nn.Linear(d_model, spec.d_inner)
        self.activation = nn.ReLU(inplace=True)
        self.w2 = nn.Linear(spec.d_inner, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., D]; each position on its own."""
        return self.dropout(self.w2(self.dropout(self.activation(self.w1(x)))))
