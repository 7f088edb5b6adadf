"""Experts by compiled kernels, C++ on a CPU and Triton on CUDA.  What is saved is as in ``products``."""

from __future__ import annotations

import torch
from torch import Tensor

from planer.kernels import triton
from planer.kernels.cpp import build
from planer.kernels.expert_ffn.products import Gradients, Layer


class Cpp:
    """planer/kernels/expert_ffn/experts.cpp."""

    def __init__(self, layer: Layer):
        self._layer = layer

    @staticmethod
    def unsupported(device: torch.device, dtype: torch.dtype, activation: str) -> str | None:
        """Why such a call cannot run, or None."""
        if activation not in ("relu", "gelu"):
            return f"has relu and gelu only, not {activation}"
        if device.type != "cpu" or dtype not in (torch.float32, torch.float64, torch.bfloat16):
            return "needs a CPU and float32, float64 or bfloat16"
        return None if build.available() else "needs a C++ compiler; the log says what failed"

    def forward(self, save: bool) -> tuple[Tensor, Tensor]:
        return torch.ops.planer_cpp.expert_ffn(*_flat(self._layer), *self._options(), save)

    def backward(self, grad: Tensor, hidden: Tensor, needs: list[bool]) -> Gradients:
        return tuple(
            torch.ops.planer_cpp.expert_ffn_backward(grad, hidden, *_flat(self._layer), *self._options(), needs)
        )

    def _options(self) -> tuple[int, bool]:
        return self._layer.per_token, self._layer.activation == "gelu"


class Triton:
    """planer/kernels/expert_ffn/triton/layer.py."""

    def __init__(self, layer: Layer):
        from planer.kernels.expert_ffn.triton import layer as kernels

        self._kernels, self._layer = kernels, layer

    @staticmethod
    def unsupported(device: torch.device, dtype: torch.dtype, activation: str) -> str | None:
        """Why such a call cannot run, or None."""
        if activation == "swiglu":
            return "has no swiglu"
        return triton.unsupported(device, dtype)

    def forward(self, save: bool) -> tuple[Tensor, Tensor]:
        y, saved = self._kernels.forward(*_flat(self._layer), *self._options())
        return y, saved[0]

    def backward(self, grad: Tensor, hidden: Tensor, needs: list[bool]) -> Gradients:
        return self._kernels.backward(grad, [hidden], *_flat(self._layer), *self._options(), needs)

    def _options(self) -> tuple[str, int | None]:
        return self._layer.activation, self._layer.per_token or None


def _flat(layer: Layer) -> tuple[Tensor | None, ...]:
    plan = layer.plan
    return (
        layer.x, layer.w1, layer.b1, layer.w2, layer.b2, layer.gate,
        plan.order, plan.inverse, plan.token, plan.offsets, plan.token_offsets, layer.keep,
    )  # fmt: skip
