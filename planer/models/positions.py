"""Position tables."""

from __future__ import annotations

import torch
from torch import Tensor

PIECE = 128
"""Distances of a growing table that are computed and projected in one call.  Calls of other sizes may round otherwise,
so that bits would depend on the table's length."""


def sinusoids(distance: Tensor, d_model: int) -> Tensor:
    """[sin(p f_m) | cos(p f_m)], f_m = 10000^(-2m/d_model): [K] distances to [K, D], in single precision.

    Computed in float32 whatever the model's type: in bfloat16, 1,024 positions collapse to 513 values.
    """
    frequency = 10000.0 ** (-torch.arange(0, d_model, 2, device=distance.device, dtype=torch.float32) / d_model)
    angle = distance.float()[:, None] * frequency
    return torch.cat((angle.sin(), angle.cos()), dim=1)
