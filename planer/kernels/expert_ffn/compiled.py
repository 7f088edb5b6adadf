"""Experts by compiled kernels, C++ on a CPU and Triton on CUDA.  What is saved is as in ``products``."""

from __future__ import annotations

import torch
from torch import Tensor

from planer.kernels import triton
from planer.kernels.activations import function_of
from planer.kernels.cpp import build
from planer.kernels.expert_ffn.products import Gradients, Layer


class Cpp:
    """planer/kernels/expert_ffn/experts.cpp."""

    def __init__(self, layer: Layer):
        self._layer = layer

    @staticmethod
    def unsupported(device: torch.device, dtype: torch.dtype, *_: int) -> str | None:
        """Why such a call cannot run, or None."""
        return build.unsupported(device, dtype, torch.float32, torch.float64, torch.bfloat16)

    def forward(self, save: bool) -> tuple[Tensor, Tensor]:
        return torch.ops.planer_cpp.expert_ffn(*self._arguments(), save)

    def backward(self, grad: Tensor, hidden: Tensor, needs: list[bool]) -> Gradients:
        return tuple(torch.ops.planer_cpp.expert_ffn_backward(grad, hidden, *self._arguments(), needs))

    def _arguments(self) -> tuple:
        *tensors, plan, dropout_mask, per_token, activation = vars(self._layer).values()
        return *tensors, list(vars(plan).values()), dropout_mask, per_token, function_of(activation)


class Triton:
    """planer/kernels/expert_ffn/triton/layer.py."""

    MOST_WEIGHTS = 2**31 - 1
    """Of one expert's matrix, whose elements the kernels count in 32 bits."""

    def __init__(self, layer: Layer):
        from planer.kernels.expert_ffn.triton import layer as kernels

        self._kernels, self._layer = kernels, layer

    @classmethod
    def unsupported(cls, device: torch.device, dtype: torch.dtype, d_model: int, _: int, rows: int) -> str | None:
        """Why such a call cannot run, or None."""
        if d_model * rows > cls.MOST_WEIGHTS:
            return f"needs at most {cls.MOST_WEIGHTS:,} weights in an expert's matrix, which are {d_model * rows:,}"
        return triton.unsupported(device, dtype)

    def forward(self, save: bool) -> tuple[Tensor, Tensor]:
        return self._kernels.forward(self._layer, save)

    def backward(self, grad: Tensor, hidden: Tensor, needs: list[bool]) -> Gradients:
        return self._kernels.backward(self._layer, grad, hidden, needs)
