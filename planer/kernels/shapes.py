"""Tensors that kernels take must fit each other."""

from __future__ import annotations

from torch import Tensor


def check_shapes(operation: str, *expected: tuple[str, Tensor | None, tuple[int, ...]]) -> None:
    """Raise ValueError for the first tensor whose shape is another one than expected; None counts as right.

    operation: the name that the message begins with.  expected: name, tensor and shape of each.
    """
    for name, tensor, shape in expected:
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{operation}: {name} is {list(tensor.shape)}; allowed: {list(shape)}, to fit the others")
