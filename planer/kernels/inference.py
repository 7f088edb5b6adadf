"""What operators of layers share whose weights are w1, b1, w2 and b2."""

from __future__ import annotations

import torch
from torch import Tensor

Bias = Tensor | None
"""None: zeros."""


def arguments_of(x: Tensor, *weights: Bias) -> list[Bias]:
    """x and the weights as operators take them: contiguous, under autocast in its precision.  None stays."""
    arguments = (x, *weights)
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        arguments = (None if t is None else t.to(dtype) for t in arguments)
    return [None if t is None else t.contiguous() for t in arguments]


def with_biases(w1: Tensor, b1: Bias, w2: Tensor, b2: Bias) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """w1 [F, D], b1, w2 [F, D] and b2; compiled kernels take zeros where there is no bias."""
    rows, width = w1.shape
    return w1, w1.new_zeros(rows) if b1 is None else b1, w2, w2.new_zeros(width) if b2 is None else b2


def refuse_gradients(operation: str, library: torch.library.Library) -> None:
    """Have ``backward`` of an operator raise RuntimeError."""

    def backward(ctx, *grads):
        raise RuntimeError(f"{operation} is for inference: only its backend reference has gradients")

    torch.library.register_autograd(f"planer::{operation}", backward, lib=library)
