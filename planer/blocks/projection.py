"""A projection of an attention as a small MLP (D2DMoE, arXiv 2310.04361, section 3.4).

Letters in shapes: F hidden neurons.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ProjectionLayer(nn.Module):
    """A two-layer MLP in the place of an attention projection: x [..., d_in] to [..., d_out]."""

    splits = True

    def __init__(self, d_in: int, d_out: int, width: int, activation: nn.Module, dropout: float, bias: bool = True):
        """width: hidden neurons."""
        super().__init__()
        self.up = nn.Linear(d_in, width, bias)
        self.activation = activation
        self.down = nn.Linear(width, d_out, bias)
        self.dropout = nn.Dropout(dropout)

    @property
    def linears(self) -> tuple[nn.Linear, nn.Linear]:
        """The maps before and after the activation."""
        return self.up, self.down

    def forward(self, x: Tensor) -> Tensor:
        return self.with_hidden(x)[0]

    def with_hidden(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The result, and the activations h [..., F] before dropout."""
        hidden = self.activation(self.up(x))
        return self.dropout(self.down(self.dropout(hidden))), hidden

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """Random weights as PyTorch's for linear layers: uniform within 1 / sqrt(fan-in)."""
        for part in (self.up, self.down):
            for weight in part.parameters():
                nn.init.uniform_(weight, -(part.in_features**-0.5), part.in_features**-0.5, generator)
