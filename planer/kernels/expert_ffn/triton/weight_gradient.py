"""Gradients of the experts' weights: for every expert, the product of two matrices over its rows.

Letters in shapes: E experts, P pairs, R rows of a source that is gathered, M and N widths of the two sides.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from planer.kernels.triton.tiles import arithmetic, grouped_tile, options


@triton.jit
def _transposed_product(
    x, x_rows, y, y_rows, gate, order, begin, end, m, n,
    M: tl.constexpr, N: tl.constexpr, SUM: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """x[begin:end]^T y[begin:end] as [BM, BN], and gate^T x[begin:end] if SUM.

    That sum is a product too, with 16 columns of which two are not zero, gate and what its rounding lost: adding rows
    of x up would take them out of the shared memory in which the tensor cores want them.
    """
    k = tl.arange(0, BK)
    c = tl.arange(0, 16)
    total = tl.zeros((BM, BN), tl.float32)
    sums = tl.zeros((BM, 16), tl.float32)
    for row in range(begin, end, BK):
        p = row + k
        live = p < end
        if x_rows is not None:
            x_row = tl.load(x_rows + p, mask=live, other=0)
        else:
            x_row = p.to(tl.int64)
        if y_rows is not None:
            y_row = tl.load(y_rows + p, mask=live, other=0)
        else:
            y_row = p.to(tl.int64)
        left = tl.load(x + x_row[:, None] * M + m[None, :], mask=live[:, None] & (m < M)[None, :], other=0.0)
        right = tl.load(y + y_row[:, None] * N + n[None, :], mask=live[:, None] & (n < N)[None, :], other=0.0)
        if UPCAST:
            left, right = left.to(tl.float32), right.to(tl.float32)
        left = tl.trans(left)
        total = tl.dot(left, right, total, input_precision=PRECISION)
        if SUM:
            if gate is not None:
                weight = tl.load(gate + tl.load(order + p, mask=live, other=0), mask=live, other=0.0).to(tl.float32)
            else:
                weight = tl.full((BK,), 1.0, tl.float32)
            rounded = weight.to(left.dtype)
            lost = (weight - rounded.to(tl.float32)).to(left.dtype)
            side = tl.where((c == 0)[None, :], rounded[:, None], tl.where((c == 1)[None, :], lost[:, None], 0.0))
            sums = tl.dot(left, side.to(left.dtype), sums, input_precision=PRECISION)
    return total, tl.sum(sums, axis=1)


@triton.jit
def _weight_gradient(
    x, x_rows, y, y_rows, offsets, gate, order, dw, db,
    M: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    columns: tl.constexpr = (N + BN - 1) // BN
    column = tl.program_id(0) % columns
    m = (tl.program_id(0) // columns) * BM + tl.arange(0, BM)
    n = column * BN + tl.arange(0, BN)
    expert = tl.program_id(1).to(tl.int64)
    begin = tl.load(offsets + expert).to(tl.int32)
    end = tl.load(offsets + expert + 1).to(tl.int32)
    at = expert * (M * N) + m[:, None] * N + n[None, :]
    inside = (m < M)[:, None] & (n < N)[None, :]
    if db is not None:
        if column == 0:
            total, sums = _transposed_product(
                x, x_rows, y, y_rows, gate, order, begin, end, m, n, M, N, True, PRECISION, UPCAST, BM, BN, BK
            )  # fmt: skip
            tl.store(db + expert * M + m, sums.to(db.dtype.element_ty), mask=m < M)
            tl.store(dw + at, total.to(dw.dtype.element_ty), mask=inside)
            return
    total, _ = _transposed_product(
        x, x_rows, y, y_rows, gate, order, begin, end, m, n, M, N, False, PRECISION, UPCAST, BM, BN, BK
    )  # fmt: skip
    tl.store(dw + at, total.to(dw.dtype.element_ty), mask=inside)


def weight_gradient(
    x: Tensor,
    y: Tensor,
    offsets: Tensor,
    like: Tensor,
    bias: Tensor | None,
    *,
    x_rows: Tensor | None = None,
    y_rows: Tensor | None = None,
    gate: Tensor | None = None,
    order: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """dw_e = sum over the pairs p of expert e of x[p]^T y[p], and, if there is a bias, db_e = sum of gate[p] x[p].

    x: [R, M] and y: [R, N], R = P unless x_rows or y_rows [P] say which row each pair takes.  gate: [P] in the order of
    which order [P] gives the sorted one, or None for ones.  Returns [E, M, N] like ``like`` and [E, M] like ``bias``;
    experts without pairs get zeros.
    """
    num_experts, height, width = like.shape
    tile = grouped_tile("weight_gradient", arithmetic(x.dtype), 0, num_experts).fitted(m=height, n=width)
    dw, db = torch.empty_like(like), None if bias is None else torch.empty_like(bias)
    grid = (triton.cdiv(height, tile.m) * triton.cdiv(width, tile.n), num_experts)
    with torch.cuda.device_of(x):
        _weight_gradient[grid](
            x, x_rows, y, y_rows, offsets, gate, order, dw, db,
            M=height, N=width, **options(x.dtype, tile),
        )  # fmt: skip
    return dw, db
