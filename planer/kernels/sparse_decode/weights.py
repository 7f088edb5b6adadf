"""Matrices as the decoding operators take them: their layout, and what their weights are stored as.

A matrix is a list of tensors: the weights, and for 8-bit integers a factor for each row.  Rows are the last dimension.
Rounding is symmetric: a row's largest weight becomes 127 or -127.  The memory of large matrices moves into huge pages.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from planer.kernels.huge_pages import into_huge_pages

WEIGHTS = ("float32", "bfloat16", "int8")
"""What weights may be stored as."""
PANEL = 32
"""Columns of a panel: see panels.h."""


def rows(weight: Tensor, kind: str = "float32") -> list[Tensor]:
    """A matrix [..., D] by rows: weights [..., D] and, for int8, factors [...].  kind: one of WEIGHTS."""
    weight = weight.detach().contiguous()
    if kind == "int8":
        factors = weight.abs().amax(-1) / 127
        return [into_huge_pages((weight / factors.clamp(min=1e-38)[..., None]).round().to(torch.int8)), factors]
    return [into_huge_pages(weight.to(getattr(torch, kind)))]


def panels(weight: Tensor, kind: str = "float32") -> list[Tensor]:
    """A matrix [..., d, M] that many rows are multiplied with, columns side by side in panels, the last one filled up
    with zeros: weights [..., ceil(M / 32), d, 32] and, for int8, factors of the columns [..., ceil(M / 32), 32]."""
    columns = F.pad(weight.detach(), (0, -weight.shape[-1] % PANEL)).transpose(-1, -2)
    stored, *factors = rows(columns, kind)
    in_panels = stored.transpose(-1, -2).unflatten(-1, (-1, PANEL)).movedim(-2, -3).contiguous()
    return [into_huge_pages(in_panels), *(factor.unflatten(-1, (-1, PANEL)) for factor in factors)]
