"""A linear layer with few weights: see planer/kernels/multiplicative.py."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from planer.initial import glorot_uniform, normal
from planer.kernels.multiplicative import multiplicative


class Multiplicative(nn.Module):
    """[..., inputs] to [..., outputs].  Raises ValueError when the modules do not divide the outputs.

    Weights start as in trax: scales from N(0, 1/2), shared Glorot-uniform.
    """

    initial = {"scales": normal(0.5), "shared": glorot_uniform}

    def __init__(self, inputs: int, outputs: int, modules: int, bias: bool = True):
        super().__init__()
        if outputs % modules:
            raise ValueError(f"{modules} modules do not divide {outputs} outputs")
        self.scales = nn.Parameter(torch.zeros(modules, inputs))
        self.shared = nn.Parameter(torch.zeros(inputs, outputs // modules))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs]."""
        return multiplicative(x, self.scales, self.shared, self.bias)
