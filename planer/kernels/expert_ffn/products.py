"""Experts as grouped matrix products in plain PyTorch: one product after the other, or PyTorch's grouped_mm.

Forward and backward are written once over three products of rows [P, .] that are sorted by expert.  Every backend of
``planer.kernels.expert_ffn`` saves the same thing for backward, ``hidden`` [P, H], H = I or, where the activation is
gated, 2I: with ReLU the hidden activations after dropout, from which the derivative can be told, with others the values
before the activation.

Letters in shapes: N tokens, D model width, E experts, I neurons of an expert, P pairs, K and M any widths.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from planer.kernels.activations import activate, through_activation
from planer.kernels.routing import Plan

Gradients = tuple[Tensor | None, ...]
"""Of x, w1, b1, w2, b2 and gate; None where not needed."""


@dataclass(frozen=True)
class Layer:
    """Arguments of one call, as ``planer.kernels.expert_ffn`` passes them on.  All tensors are contiguous.

    x: [N, D]; w1: [E, H, D]; b1: [E, H] or None; w2: [E, D, I]; b2: [E, D] or None.  gate: [P] or None, in the order of
    the pairs.  dropout_mask: [P, I] or None, dropout's multipliers of hidden neurons, in the order of the plan.
    per_token: the pairs of every token, or 0 when tokens differ.  activation: one of ACTIVATIONS.
    """

    x: Tensor
    w1: Tensor
    b1: Tensor | None
    w2: Tensor
    b2: Tensor | None
    gate: Tensor | None
    plan: Plan
    dropout_mask: Tensor | None
    per_token: int
    activation: str


class Products(ABC):
    """A layer by three products of each expert's rows a_e, b_e with each other or with its weights w_e."""

    def __init__(self, layer: Layer):
        self.layer = layer

    @abstractmethod
    def times_transposed(self, a: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
        """a_e w_e^T + bias_e: a [P, K], w [E, M, K], bias [E, M] or None, to [P, M]."""

    @abstractmethod
    def times(self, a: Tensor, w: Tensor) -> Tensor:
        """a_e w_e: a [P, K], w [E, K, M], to [P, M]."""

    @abstractmethod
    def outer(self, a: Tensor, b: Tensor) -> Tensor:
        """a_e^T b_e: a [P, K], b [P, M], to [E, K, M]; zeros for experts without rows."""

    @abstractmethod
    def sums(self, a: Tensor) -> Tensor:
        """Sum of each expert's rows: a [P, K] to [E, K]."""

    def forward(self, save: bool) -> tuple[Tensor, Tensor]:
        """y [N, D] and hidden [P, H], whether it is to be saved or not."""
        layer = self.layer
        hidden = self.times_transposed(layer.x.index_select(0, layer.plan.token), layer.w1, layer.b1)
        active = activate(hidden, layer.activation)
        if layer.dropout_mask is not None:
            active.mul_(layer.dropout_mask)
        outputs = self.times_transposed(active, layer.w2, layer.b2).index_select(0, layer.plan.inverse)
        if layer.gate is not None:
            outputs.mul_(layer.gate[:, None].to(outputs.dtype))
        return _sum_by_token(outputs, layer), hidden

    def backward(self, grad: Tensor, hidden: Tensor, needs: list[bool]) -> Gradients:
        """grad: [N, D], of y; hidden: what forward saved; needs: which gradients.

        Neither the experts' outputs nor their gradients by gate are kept: with dA = dy w2, d gate = dA . h + dy . b2
        and dz = gate act'(z) dA (SonicMoE, arXiv 2512.14080).
        """
        layer, plan = self.layer, self.layer.plan
        need_x, need_w1, need_b1, need_w2, need_b2, need_gate = needs
        dy = grad.index_select(0, plan.token)
        gate = None if layer.gate is None else layer.gate[plan.order]
        active = _active(hidden, layer)
        dx = dw1 = db1 = dw2 = db2 = d_gate = None
        if need_x or need_w1 or need_b1 or need_gate:
            dz = self.times(dy, layer.w2)
            if need_gate:
                d_gate = (dz * active).sum(dim=1, dtype=gate.dtype)
                if layer.b2 is not None:
                    d_gate += (dy * layer.b2[_experts(plan)]).sum(dim=1, dtype=gate.dtype)
                d_gate = d_gate[plan.inverse]
            dz = _through_activation(dz, hidden, layer)
            if gate is not None:
                dz.mul_(gate[:, None].to(dz.dtype))
            if need_w1:
                dw1 = self.outer(dz, layer.x.index_select(0, plan.token))
            if need_b1:
                db1 = self.sums(dz)
            if need_x:
                dx = _sum_by_token(self.times(dz, layer.w1).index_select(0, plan.inverse), layer)
        if gate is not None:
            dy.mul_(gate[:, None].to(dy.dtype))
        if need_w2:
            dw2 = self.outer(dy, active)
        if need_b2:
            db2 = self.sums(dy)
        return dx, dw1, db1, dw2, db2, d_gate


class Loop(Products):
    """One matrix product an expert, of any type of number.  On CUDA it waits for the offsets."""

    def __init__(self, layer: Layer):
        super().__init__(layer)
        bounds = layer.plan.offsets.tolist()
        self._rows = [slice(*pair) for pair in zip(bounds, bounds[1:], strict=False)]

    def times_transposed(self, a: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
        out = a.new_empty(a.shape[0], w.shape[1])
        for e, rows in enumerate(self._rows):
            if bias is None:
                torch.mm(a[rows], w[e].t(), out=out[rows])
            else:
                torch.addmm(bias[e], a[rows], w[e].t(), out=out[rows])
        return out

    def times(self, a: Tensor, w: Tensor) -> Tensor:
        out = a.new_empty(a.shape[0], w.shape[2])
        for e, rows in enumerate(self._rows):
            torch.mm(a[rows], w[e], out=out[rows])
        return out

    def outer(self, a: Tensor, b: Tensor) -> Tensor:
        out = a.new_empty(len(self._rows), a.shape[1], b.shape[1])
        for e, rows in enumerate(self._rows):
            torch.mm(a[rows].t(), b[rows], out=out[e])
        return out

    def sums(self, a: Tensor) -> Tensor:
        out = a.new_empty(len(self._rows), a.shape[1])
        for e, rows in enumerate(self._rows):
            torch.sum(a[rows], dim=0, out=out[e])
        return out


grouped_mm = getattr(F, "grouped_mm", None) or torch._grouped_mm
"""Public since PyTorch 2.10."""


class GroupedMM(Products):
    """PyTorch's grouped_mm.  On CUDA with bfloat16 it waits for nothing."""

    ALIGNMENT = 16
    """Bytes of which every row must be a multiple."""

    def __init__(self, layer: Layer):
        super().__init__(layer)
        self._ends = layer.plan.offsets[1:].to(torch.int32)

    @classmethod
    def unsupported(cls, device: torch.device, dtype: torch.dtype, *widths: int) -> str | None:
        """Why rows of such widths cannot be multiplied, or None."""
        aligned = all(width * dtype.itemsize % cls.ALIGNMENT == 0 for width in widths)
        if aligned and dtype in (torch.float32, torch.bfloat16, torch.float16):
            return None
        return f"needs float32, bfloat16 or float16 and rows of whole {cls.ALIGNMENT} bytes"

    def times_transposed(self, a: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
        out = grouped_mm(a, w.transpose(1, 2), offs=self._ends)
        return out if bias is None else out.add_(bias[_experts(self.layer.plan)])

    def times(self, a: Tensor, w: Tensor) -> Tensor:
        return grouped_mm(a, w, offs=self._ends)

    def outer(self, a: Tensor, b: Tensor) -> Tensor:
        return grouped_mm(a.t(), b, offs=self._ends)

    def sums(self, a: Tensor) -> Tensor:
        """As a product, which needs neither atomics nor the offsets on the host."""
        ones = a.new_ones(a.shape[0], self.ALIGNMENT // a.element_size())
        return grouped_mm(a.t(), ones, offs=self._ends)[:, :, 0].contiguous()


def _experts(plan: Plan) -> Tensor:
    """The expert of every sorted pair: [P]."""
    rows = torch.arange(plan.token.shape[0], device=plan.token.device)
    return torch.searchsorted(plan.offsets[1:], rows, right=True)


def _sum_by_token(pairs: Tensor, layer: Layer) -> Tensor:
    """Sum rows of pairs in their original order [P, D] into tokens [N, D]."""
    num_tokens = layer.x.shape[0]
    if layer.per_token == 1:
        return pairs
    if layer.per_token:
        return pairs.unflatten(0, (num_tokens, layer.per_token)).sum(dim=1)
    total = pairs.new_zeros(num_tokens, pairs.shape[1])
    return total.index_add_(0, layer.plan.token[layer.plan.inverse], pairs)


def _active(hidden: Tensor, layer: Layer) -> Tensor:
    """Hidden activations after dropout, from what is saved."""
    if layer.activation == "relu":
        return hidden
    active = activate(hidden, layer.activation)
    return active if layer.dropout_mask is None else active.mul_(layer.dropout_mask)


def _through_activation(d_active: Tensor, hidden: Tensor, layer: Layer) -> Tensor:
    """From the gradient of active neurons to that of the values before the activation; may overwrite the former."""
    if layer.dropout_mask is not None:
        d_active = d_active.mul_(layer.dropout_mask)
    return through_activation(d_active, hidden, layer.activation)
