"""Penalties that make activations sparse, and how their weight grows (D2DMoE, arXiv 2310.04361, section 3.1).

    H2(a) = (sum_i |a_i|)^2 / (sum_i a_i^2 + eps)          l1(a) = sum_i |a_i|

Letters in shapes: F neurons.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

EPSILON = 1e-15
"""Keeps a token without any activation at penalty 0 with gradient 0, in single precision (in half it is no number)."""


def square_hoyer(a: Tensor) -> Tensor:
    """Square Hoyer measure of each token: [..., F] to [...], in at least single precision.

    The number of equally strong neurons that a token amounts to: 1 for a single one, F for a constant vector, 0 for
    none; multiplying a by a number changes nothing.
    """
    a = a.to(torch.promote_types(a.dtype, torch.float32))
    return a.abs().sum(-1).square() / (a.square().sum(-1) + EPSILON)


def l1(a: Tensor) -> Tensor:
    """Sum of magnitudes of each token: [..., F] to [...], in at least single precision."""
    return a.to(torch.promote_types(a.dtype, torch.float32)).abs().sum(-1)


PENALTIES: dict[str, Callable[[Tensor], Tensor]] = {"hoyer": square_hoyer, "l1": l1}


def mean(values: Tensor) -> Tensor:
    """The mean; 0, with gradients of 0, where there are no values."""
    return values.mean() if values.numel() else values.sum()


def sum_over_groups(penalties: Iterable[tuple[bool, Tensor]]) -> Tensor:
    """The mean over feed-forward layers plus the mean over attention projections, where there are any.

    penalties: of every layer, with whether it is a projection.
    """
    groups: dict[bool, list[Tensor]] = {}
    for is_projection, penalty in penalties:
        groups.setdefault(is_projection, []).append(penalty)
    return torch.stack([torch.stack(group).mean() for group in groups.values()]).sum()


def ramp(kind: str, t: int, T: int) -> float:
    """Share of alpha in force at step t of T, counted from 1.

    ``none``: 1.  ``linear``: t / T.  ``linear_warmup``: min(1, t / floor(T / 2)).
    """
    match kind:
        case "none":
            return 1.0
        case "linear":
            return t / T
        case "linear_warmup":
            return min(1.0, t / max(T // 2, 1))
    raise ValueError(f"ramp is {kind!r}; allowed: none, linear, linear_warmup")
