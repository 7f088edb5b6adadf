"""The gradient of the hidden neurons, and what only it has at hand, in the epilogue of one product.

With a = mask * act(z) and y = gate * (W2 a + b2), and d = W2^T dy without the gate (SonicMoE, arXiv 2512.14080), where
mask has dropout's multipliers:

    dz = gate * d * mask * act'(z),    dgate = d . a + dy . b2,    dW2 = dy (gate * a)^T

so the outputs y of the pairs are never kept.  Where the activation is gated, a = mask * act(z) * u and u has a gradient
like that of z: gate * d * mask * act(z).

Letters in shapes: N tokens, D model width, E experts, I neurons of an expert, P pairs; H = I, or 2 I where the
activation is gated, for z and u side by side.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from planer.kernels.triton.product import activated, activation_slope, expert_rows, product
from planer.kernels.triton.tiles import grouped_options

ROWS = 16
"""Pairs whose gate gradient one program finishes."""


@triton.jit(do_not_specialize=["P"])
def _hidden_gradient(
    dy, token, w2, offsets, saved, dropout_mask, gate, order, dz, weighted, shares, P,
    E: tl.constexpr, EP: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
    ACTIVATION: tl.constexpr, GATED: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    columns: tl.constexpr = (N + BN - 1) // BN
    expert, row, end = expert_rows(tl.program_id(0) // columns, offsets, E, EP, BM)
    if expert >= E:
        return
    p = row + tl.arange(0, BM)
    live = p < end
    first = (tl.program_id(0) % columns) * BN
    n = first + tl.arange(0, BN)
    source = tl.load(token + p, mask=live, other=0)
    weight = w2 + expert.to(tl.int64) * (N * K)
    d = product(dy, source, weight, n, N, K, True, PRECISION, UPCAST, BM, BN, BK)
    # Half of the columns after the other: all at once need more registers than a thread has.
    left, right = tl.split(tl.permute(tl.reshape(d, (BM, 2, BN // 2)), (0, 2, 1)))
    scale = 1.0
    if gate is not None:
        scale = tl.load(gate + tl.load(order + p, mask=live, other=0), mask=live, other=0.0).to(tl.float32)
    share = tl.zeros((BM,), tl.float32)
    for half in tl.static_range(2):
        d = left if half == 0 else right
        n = first + half * (BN // 2) + tl.arange(0, BN // 2)
        inside = live[:, None] & (n < N)[None, :]
        at = p.to(tl.int64)[:, None] * N + n[None, :]
        z_at = p.to(tl.int64)[:, None] * (2 * N if GATED else N) + n[None, :]
        value = tl.load(saved + z_at, mask=inside, other=0.0).to(tl.float32)
        if ACTIVATION == "relu":
            hidden = value
            slope = tl.where(value > 0, d, 0.0)
        else:
            hidden = activated(value, ACTIVATION)
            slope = d * activation_slope(value, ACTIVATION)
        if dropout_mask is not None:
            kept = tl.load(dropout_mask + at, mask=inside, other=0.0).to(tl.float32)
            slope *= kept
            if ACTIVATION != "relu":
                hidden *= kept
        if GATED:
            other_slope = d * hidden
            other = tl.load(saved + z_at + N, mask=inside, other=0.0).to(tl.float32)
            slope *= other
            hidden *= other
        if gate is not None:
            share += tl.sum(d * hidden, axis=1)
            slope *= scale[:, None]
            hidden *= scale[:, None]
            if GATED:
                other_slope *= scale[:, None]
        if weighted is not None:
            tl.store(weighted + at, hidden.to(weighted.dtype.element_ty), mask=inside)
        tl.store(dz + z_at, slope.to(dz.dtype.element_ty), mask=inside)
        if GATED:
            tl.store(dz + z_at + N, other_slope.to(dz.dtype.element_ty), mask=inside)
    if gate is not None:
        tl.store(shares + (tl.program_id(0) % columns).to(tl.int64) * P + p, share, mask=live)


@triton.jit(do_not_specialize=["P"])
def _gate_gradient(
    shares, columns, dy, b2, token, offsets, order, dgate, P,
    E: tl.constexpr, EP: tl.constexpr, D: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    p = tl.program_id(0) * BR + tl.arange(0, BR)
    live = p < P
    total = tl.zeros((BR,), tl.float32)
    for _ in range(0, columns):
        total += tl.load(shares + p, mask=live, other=0.0)
        shares += P
    if b2 is not None:
        e = tl.arange(0, EP)
        ends = tl.load(offsets + e + 1, mask=e < E - 1, other=P)
        expert = tl.sum((ends[None, :] <= p[:, None]).to(tl.int32), axis=1)
        source = tl.load(token + p, mask=live, other=0)
        d = tl.arange(0, BD)
        for start in range(0, D, BD):
            inside = live[:, None] & (start + d < D)[None, :]
            left = tl.load(dy + source[:, None] * D + start + d[None, :], mask=inside, other=0.0)
            right = tl.load(b2 + expert[:, None] * D + start + d[None, :], mask=inside, other=0.0)
            total += tl.sum(left.to(tl.float32) * right.to(tl.float32), axis=1)
    target = tl.load(order + p, mask=live, other=0)
    tl.store(dgate + target, total.to(dgate.dtype.element_ty), mask=live)


def hidden_gradient(
    dy: Tensor,
    w2: Tensor,
    b2: Tensor | None,
    gate: Tensor | None,
    order: Tensor,
    token: Tensor,
    offsets: Tensor,
    saved: Tensor,
    dropout_mask: Tensor | None,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """dz [P, H], gate * a [P, I] and dgate [P], the last in the original order of pairs.

    dy: [N, D]; w2: [E, D, I]; b2: [E, D]; gate, order, token: [P]; offsets: [E + 1]; dropout_mask: [P, I].
    saved: [P, H], a for ReLU and z for others.
    """
    pairs, (num_experts, d_model, d_inner) = token.shape[0], w2.shape
    operation = "hidden_gradient_sigmoid" if activation in ("gelu_tanh", "silu") else "hidden_gradient"
    programs, options = grouped_options(operation, dy.dtype, pairs, num_experts, d_inner, d_model)
    columns = triton.cdiv(d_inner, options["BN"])
    dz = torch.empty_like(saved)
    weighted = saved if activation == "relu" and gate is None else saved.new_empty(pairs, d_inner)
    shares, dgate = None, None
    if gate is not None:
        shares, dgate = gate.new_empty(columns, pairs, dtype=torch.float32), torch.empty_like(gate)
    if not pairs:
        return dz, weighted, dgate
    with torch.cuda.device_of(dy):
        _hidden_gradient[programs,](
            dy, token, w2, offsets, saved, dropout_mask, gate, order,
            dz, None if weighted is saved else weighted, shares, pairs,
            ACTIVATION=activation, GATED=saved.shape[1] > d_inner, **options,
        )  # fmt: skip
        if gate is not None:
            _gate_gradient[triton.cdiv(pairs, ROWS),](
                shares, columns, dy, b2, token, offsets, order, dgate, pairs,
                E=num_experts, EP=options["EP"], D=d_model, BR=ROWS, BD=min(triton.next_power_of_2(d_model), 512),
                num_warps=4,
            )  # fmt: skip
    return dz, weighted, dgate
