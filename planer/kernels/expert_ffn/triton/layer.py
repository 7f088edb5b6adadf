"""Feed-forward experts on routed tokens, forward and backward.

Letters in shapes: N tokens, D model width, E experts, I neurons of an expert, P pairs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from planer.kernels.expert_ffn.triton.combine import combine
from planer.kernels.expert_ffn.triton.grouped_gemm import grouped_gemm
from planer.kernels.expert_ffn.triton.hidden_gradient import hidden_gradient
from planer.kernels.expert_ffn.triton.weight_gradient import weight_gradient


def forward(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    gate: Tensor | None,
    order: Tensor,
    inverse: Tensor,
    token: Tensor,
    offsets: Tensor,
    token_offsets: Tensor,
    keep: Tensor | None,
    activation: str,
    per_token: int | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """y[t] = sum over the pairs of token t of gate * (w2_e (keep * activation(w1_e x[t] + b1_e)) + b2_e).

    x: [N, D]; w1: [E, I, D]; b1: [E, I]; w2: [E, D, I]; b2: [E, D]; gate: [P] in the original order of pairs, or None
    for ones; order to token_offsets: a ``Plan``; keep: [P, I], what dropout multiplies hidden neurons by, in sorted
    order; activation: one that is not gated; per_token: pairs of every token, None if they differ.  float32, float16 or
    bfloat16, x and weights alike; biases and gate may be wider.  All contiguous.
    Returns y [N, D] and what backward needs: the hidden neurons [P, I] (ReLU), or those before the activation (others).

    Two launches when every token has one pair, whose product goes straight to the token's row, else three.
    """
    pairs, d_inner = token.shape[0], w1.shape[1]
    hidden = x.new_empty(pairs, d_inner)
    before = None if activation == "relu" else torch.empty_like(hidden)
    grouped_gemm(
        "up_relu" if before is None else "up_gelu", x, w1, offsets, hidden,
        pairs=pairs, a_rows=token, bias=b1, activation=activation, before=before, keep=keep,
    )  # fmt: skip
    y = torch.empty_like(x)
    if per_token == 1:
        grouped_gemm("down", hidden, w2, offsets, y, pairs=pairs, bias=b2, gate=gate, out_rows=token)
    else:
        outputs = x.new_empty(pairs, x.shape[1])
        grouped_gemm("down", hidden, w2, offsets, outputs, pairs=pairs, bias=b2)
        combine(outputs, inverse, token_offsets, gate, per_token, y)
    return y, [hidden if before is None else before]


def backward(
    grad_y: Tensor,
    saved: list[Tensor],
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    gate: Tensor | None,
    order: Tensor,
    inverse: Tensor,
    token: Tensor,
    offsets: Tensor,
    token_offsets: Tensor,
    keep: Tensor | None,
    activation: str,
    per_token: int | None = None,
    needs: Sequence[bool] = (True,) * 6,
) -> tuple[Tensor | None, ...]:
    """Gradients of x, w1, b1, w2, b2 and gate; None for what is None, and for products that needs says nobody asks for.

    grad_y: [N, D]; saved: what forward returned; the rest as in forward.  Experts without pairs get zeros.
    """
    pairs = token.shape[0]
    dx = dw1 = db1 = dw2 = db2 = None
    dz, weighted, dgate = hidden_gradient(grad_y, w2, b2, gate, order, token, offsets, saved[0], keep, activation)
    if needs[0]:
        dx = torch.empty_like(x)
        if per_token == 1:
            grouped_gemm("down", dz, w1, offsets, dx, pairs=pairs, transposed=True, out_rows=token)
        else:
            rows = x.new_empty(pairs, x.shape[1])
            grouped_gemm("down", dz, w1, offsets, rows, pairs=pairs, transposed=True)
            combine(rows, inverse, token_offsets, None, per_token, dx)
    if needs[1] or needs[2]:
        dw1, db1 = weight_gradient(dz, x, offsets, w1, b1, y_rows=token)
    if needs[3] or needs[4]:
        dw2, db2 = weight_gradient(grad_y, weighted, offsets, w2, b2, x_rows=token, gate=gate, order=order)
    return dx, dw1, db1, dw2, db2, dgate
