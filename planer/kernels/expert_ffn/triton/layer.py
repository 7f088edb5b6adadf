"""Feed-forward experts on routed tokens, forward and backward.

Letters in shapes: N tokens, D model width, E experts, I neurons of an expert, P pairs; H = I, or 2 I where the
activation is gated.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from planer.kernels.activations import function_of
from planer.kernels.expert_ffn.products import Gradients, Layer
from planer.kernels.expert_ffn.triton.combine import combine
from planer.kernels.expert_ffn.triton.grouped_gemm import grouped_gemm
from planer.kernels.expert_ffn.triton.hidden_gradient import hidden_gradient
from planer.kernels.expert_ffn.triton.weight_gradient import weight_gradient


def forward(layer: Layer, save: bool = True) -> tuple[Tensor, Tensor]:
    """y [N, D], and what backward needs [P, H]: hidden neurons (ReLU), or the values before the activation (others).

    float32, float16 or bfloat16, x and weights alike; biases and gate may be wider.  The second result has any contents
    unless it is to be saved.  Two launches when every token has one pair, whose product goes straight to the token's
    row, else three.
    """
    x, plan = layer.x, layer.plan
    pairs, relu = plan.token.shape[0], layer.activation == "relu"
    hidden = x.new_empty(pairs, layer.w2.shape[2])
    before = x.new_empty(pairs, layer.w1.shape[1]) if save and not relu else None
    grouped_gemm(
        "up_relu" if relu else "up", x, layer.w1, plan.offsets, hidden, pairs=pairs, a_rows=plan.token, bias=layer.b1,
        activation=function_of(layer.activation), before=before, dropout_mask=layer.dropout_mask,
    )  # fmt: skip
    y = _by_token(hidden, layer.w2, layer, bias=layer.b2, gate=layer.gate)
    return y, hidden if before is None else before


def backward(layer: Layer, grad: Tensor, saved: Tensor, needs: Sequence[bool] = (True,) * 6) -> Gradients:
    """Gradients of x, w1, b1, w2, b2 and gate; None for what is None, and for products that needs says nobody asks for.

    grad: [N, D], of y; saved: what forward returned.  Experts without pairs get zeros.
    """
    plan, gate = layer.plan, layer.gate
    dx = dw1 = db1 = dw2 = db2 = None
    dz, weighted, dgate = hidden_gradient(
        grad, layer.w2, layer.b2, gate, plan.order, plan.token, plan.offsets, saved, layer.dropout_mask,
        function_of(layer.activation),
    )  # fmt: skip
    if needs[0]:
        dx = _by_token(dz, layer.w1, layer, transposed=True)
    if needs[1] or needs[2]:
        dw1, db1 = weight_gradient(dz, layer.x, plan.offsets, layer.w1, layer.b1, y_rows=plan.token)
    if needs[3] or needs[4]:
        dw2, db2 = weight_gradient(
            grad, weighted, plan.offsets, layer.w2, layer.b2, x_rows=plan.token, gate=gate, order=plan.order
        )
    return dx, dw1, db1, dw2, db2, dgate


def _by_token(rows: Tensor, w: Tensor, layer: Layer, gate: Tensor | None = None, **options) -> Tensor:
    """Rows of pairs times their expert's w, summed into tokens with gate as weight: [N, D]."""
    plan, y = layer.plan, torch.empty_like(layer.x)
    pairs = plan.token.shape[0]
    if layer.per_token == 1:
        return grouped_gemm("down", rows, w, plan.offsets, y, pairs=pairs, gate=gate, out_rows=plan.token, **options)
    outputs = grouped_gemm("down", rows, w, plan.offsets, y.new_empty(pairs, y.shape[1]), pairs=pairs, **options)
    return combine(outputs, plan.inverse, plan.token_offsets, gate, layer.per_token, y)
