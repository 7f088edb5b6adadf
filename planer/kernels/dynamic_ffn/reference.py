"""The definition of dynamic_ffn: the oracle of the tests."""

from __future__ import annotations

import torch
from torch import Tensor

from planer.kernels.activations import activate, factors
from planer.kernels.inference import Bias


def dynamic_ffn_reference(
    x: Tensor, w1: Tensor, b1: Bias, w2: Tensor, b2: Bias, mask: Tensor, activation: str = "relu"
) -> Tensor:
    """The definition, one token and expert at a time, in the precision of its arguments."""
    count = w2.shape[0]
    size = count // mask.shape[1]
    total = []
    for row, chosen in zip(x, mask.tolist(), strict=True):
        y = torch.zeros_like(row) if b2 is None else b2
        for c in [c for c, executed in enumerate(chosen) if executed]:
            neurons = torch.arange(c * size, (c + 1) * size, device=x.device)
            first = torch.cat([neurons + part * count for part in range(factors(activation))])
            z = w1[first] @ row
            y = y + activate(z if b1 is None else z + b1[first], activation) @ w2[neurons]
        total.append(y)
    return torch.stack(total) if total else torch.zeros_like(x)
