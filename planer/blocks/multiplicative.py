"""A linear layer with few weights: see planer/kernels/multiplicative.py."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from planer.initial import glorot_uniform, normal
from planer.kernels.multiplicative import multiplicative


class Multiplicative(nn.Module):
    """[..., inputs] to [..., outputs].  Raises ValueError when the modules do not divide the outputs.

    Weights start as in trax: scales normal with standard deviation 0.5, shared Glorot-uniform.
    """

    initial = {"scales": normal(0.5), "shared": glorot_uniform}

    def __init__(self, inputs: int, outputs: int, modules: int, bias: bool = True):
        super().__init__()
        if outputs % modules:
            raise ValueError(f"{modules} modules do not divide {outputs} outputs")
        self.scales = nn.Parameter(torch.zeros(modules, inputs))
        self.shared = nn.Parameter(torch.zeros(inputs, outputs // modules))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    @torch.no_grad()
    def approximate(self, weight: Tensor) -> None:
        """Take the scales and shared weights whose product is nearest to a dense weight [outputs, inputs], in squares.

        An input's outputs are a matrix [modules, outputs / modules], of which the layer has the best rank-1
        approximation (Eckart and Young, 1936).  The bias becomes 0.
        """
        matrices = weight.t().unflatten(1, (len(self.scales), -1))
        left, singular, right = torch.linalg.svd(matrices, full_matrices=False)
        root = singular[:, :1].sqrt()
        self.scales.copy_((left[:, :, 0] * root).t())
        self.shared.copy_(right[:, 0] * root)
        if self.bias is not None:
            self.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs]."""
        return multiplicative(x, self.scales, self.shared, self.bias)
