"""The error of a result, and formulas of activations."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from planer.kernels.activations import GATED


def times_factor(function: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    gate, up = z.tensor_split(2, dim=-1)
    return function(gate) * up


FORMULAS = {
    "relu": lambda z: z * (z > 0),
    "gelu": lambda z: z * 0.5 * (1 + torch.erf(z / math.sqrt(2))),
    "gelu_tanh": lambda z: z * 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))),
    "silu": lambda z: z / (1 + torch.exp(-z)),
}
FORMULAS |= {gated: partial(times_factor, FORMULAS[function]) for gated, function in GATED.items()}
"""By the names in planer.kernels.activations."""


def normalised_error(ours: Tensor, expected: Tensor) -> float:
    """The larger of |a - b| / |b| over all elements together and the largest difference over the largest element.

    In double precision; 0 where both are all zeros, infinite where ours has anything that is not finite.
    """
    assert ours.shape == expected.shape, f"{tuple(ours.shape)} instead of {tuple(expected.shape)}"
    a, b = ours.detach().double(), expected.detach().double().to(ours.device)
    if not a.isfinite().all():
        return float("inf")
    if a.equal(b):
        return 0.0
    difference = (a - b).abs()
    scale = max(b.norm().item(), 1e-300), max(b.abs().max().item(), 1e-300)
    return max(difference.norm().item() / scale[0], difference.max().item() / scale[1])
