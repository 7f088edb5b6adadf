"""Rows grouped by expert times the expert's weight, with everything around the product in the same launch.

Rows may be gathered on the way in and scattered on the way out; bias, activation, dropout and gate are applied before
the only store.

Letters in shapes: E experts, P pairs, R rows of the source, K and N width of a row before and after the product.  A
gated activation makes N // 2 numbers of N: the first half is the gate.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from planer.kernels.triton.product import activated, expert_rows, product
from planer.kernels.triton.tiles import grouped_options


@triton.jit
def _grouped_gemm(
    a, a_rows, w, bias, offsets, gate, dropout_mask, out, out_rows, before,
    E: tl.constexpr, EP: tl.constexpr, N: tl.constexpr, K: tl.constexpr, TRANSPOSED: tl.constexpr,
    ACTIVATION: tl.constexpr, GATED: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    columns: tl.constexpr = (N + BN - 1) // BN
    HALF: tl.constexpr = BN // 2
    OUT: tl.constexpr = N // 2 if GATED else N
    expert, row, end = expert_rows(tl.program_id(0) // columns, offsets, E, EP, BM)
    if expert >= E:
        return
    p = row + tl.arange(0, BM)
    live = p < end
    first = (tl.program_id(0) % columns) * (HALF if GATED else BN)
    n = first + tl.arange(0, BN)
    if GATED:  # half of the columns are the gate, the others what it multiplies
        n += (OUT - HALF) * (tl.arange(0, BN) // HALF)
    if a_rows is not None:
        source = tl.load(a_rows + p, mask=live, other=0)
    else:
        source = tl.minimum(p, end - 1).to(tl.int64)
    weight = w + expert.to(tl.int64) * (N * K)
    result = product(a, source, weight, n, N, K, TRANSPOSED, PRECISION, UPCAST, BM, BN, BK)
    target = p.to(tl.int64)
    scale = 1.0
    if out_rows is not None:
        target = tl.load(out_rows + p, mask=live, other=0)
        if gate is not None:
            scale = tl.load(gate + target, mask=live, other=0.0).to(tl.float32)[:, None]
    # Half of the columns after the other: all at once need more registers than a thread has.
    left, right = tl.split(tl.permute(tl.reshape(result, (BM, 2, HALF)), (0, 2, 1)))
    for half in tl.static_range(2):
        result = left if half == 0 else right
        column = first + (0 if GATED else half * HALF) + tl.arange(0, HALF)
        n = column + (half * OUT if GATED else 0)
        if bias is not None:
            result += tl.load(bias + expert * N + n, mask=column < OUT, other=0.0).to(tl.float32)[None, :]
        inside = live[:, None] & (column < OUT)[None, :]
        if before is not None:
            at = p.to(tl.int64)[:, None] * N + n[None, :]
            tl.store(before + at, result.to(before.dtype.element_ty), mask=inside)
        if GATED and half == 0:
            factor = activated(result, ACTIVATION)
        else:
            if GATED:
                result *= factor
            elif ACTIVATION is not None:
                result = activated(result, ACTIVATION)
            if dropout_mask is not None:
                at = p.to(tl.int64)[:, None] * OUT + column[None, :]
                result *= tl.load(dropout_mask + at, mask=inside, other=0.0).to(tl.float32)
            if gate is not None:
                result *= scale
            tl.store(out + target[:, None] * OUT + column[None, :], result.to(out.dtype.element_ty), mask=inside)


def grouped_gemm(
    operation: str,
    a: Tensor,
    w: Tensor,
    offsets: Tensor,
    out: Tensor,
    *,
    pairs: int,
    a_rows: Tensor | None = None,
    transposed: bool = False,
    bias: Tensor | None = None,
    activation: str | None = None,
    before: Tensor | None = None,
    dropout_mask: Tensor | None = None,
    gate: Tensor | None = None,
    out_rows: Tensor | None = None,
) -> Tensor:
    """out[p] = activation(w_e a[p] + bias_e), e the expert of sorted pair p; returns out.

    operation: its row in the table of tiles.  a: [R, K], R = P unless a_rows [P] says which row each pair takes.
    w: [E, N, K], or [E, K, N] when transposed; bias: [E, N].  before: [P, N], receives what the activation gets.
    out: [P, N], or [P, N // 2] where the activation is gated; dropout_mask: like out, multiplies what the
    activation returns.
    With out_rows, row out_rows[p] of out gets pair p, times gate[out_rows[p]].  Every row of out that a pair writes to
    is written once.
    """
    num_experts, width = w.shape[0], w.shape[2 if transposed else 1]
    programs, options = grouped_options(operation, a.dtype, pairs, num_experts, width, a.shape[1])
    if pairs:
        with torch.cuda.device_of(a):
            _grouped_gemm[programs,](
                a, a_rows, w, bias, offsets, gate, dropout_mask, out, out_rows, before,
                TRANSPOSED=transposed, ACTIVATION=activation, GATED=width > out.shape[1], **options,
            )  # fmt: skip
    return out
