"""The layout of weights that many rows are multiplied with: see panels.h."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

PANEL = 32
"""Columns of a panel."""


def panels(weight: Tensor) -> Tensor:
    """Columns side by side in panels, the last one filled up with zeros: [..., d, M] to [..., ceil(M / 32), d, 32]."""
    filled = F.pad(weight.detach(), (0, -weight.shape[-1] % PANEL))
    return filled.unflatten(-1, (-1, PANEL)).movedim(-2, -3).contiguous()
