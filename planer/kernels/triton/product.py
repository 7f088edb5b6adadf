"""What kernels of grouped products share.

Rows of an expert are consecutive in the list of pairs sorted by expert.  They are cut into tiles that hold rows of one
expert only, so P rows make at most P // BM + E tiles: a bound that needs no look at the routing.

Letters in shapes: E experts, EP the next power of two, P pairs; a program makes BM x BN numbers, BK at a time.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def expert_rows(tile, offsets, E: tl.constexpr, EP: tl.constexpr, BM: tl.constexpr):
    """The expert of a tile, its first row, and the end of the expert's rows.  After the last tile, expert >= E.

    offsets [0, 5, 5, 7] with BM 4: tiles 0 to 2 are (0, 0, 5), (0, 4, 5), (2, 5, 7).
    """
    e = tl.arange(0, EP)
    begin = tl.load(offsets + e, mask=e < E, other=0).to(tl.int32)
    end = tl.load(offsets + e + 1, mask=e < E, other=0).to(tl.int32)
    tiles = (end - begin + BM - 1) // BM
    through = tl.cumsum(tiles, axis=0)
    expert = tl.sum((through <= tile).to(tl.int32), axis=0)
    mine = e == expert
    row = tl.sum(tl.where(mine, begin + (tile - through + tiles) * BM, 0), axis=0)
    return expert, row, tl.sum(tl.where(mine, end, 0), axis=0)


@triton.jit
def product(
    a, rows, w, n,
    N: tl.constexpr, K: tl.constexpr, TRANSPOSED: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """a[rows] times one expert's weight, in float32: [BM, BN].

    a: [., K]; rows: [BM] int64; n: [BN], the columns.  w: [N, K], or [K, N] when TRANSPOSED.  N and K are constants
    of the code: with sizes that look odd to the compiler, loads are neither wide nor overlapped with the arithmetic.
    """
    k = tl.arange(0, BK)
    a_at = a + rows[:, None] * K + k[None, :]
    if TRANSPOSED:
        w_at = w + k[:, None] * N + n[None, :]
    else:
        w_at = w + n[None, :] * K + k[:, None]
    total = tl.zeros((BM, BN), tl.float32)
    for start in range(0, K, BK):
        if K % BK == 0:
            left = tl.load(a_at)
        else:
            left = tl.load(a_at, mask=(start + k < K)[None, :], other=0.0)
        if K % BK == 0 and N % BN == 0:
            right = tl.load(w_at)
        else:
            right = tl.load(w_at, mask=(start + k < K)[:, None] & (n < N)[None, :], other=0.0)
        if UPCAST:
            left, right = left.to(tl.float32), right.to(tl.float32)
        total = tl.dot(left, right, total, input_precision=PRECISION)
        a_at += BK
        w_at += BK * N if TRANSPOSED else BK
    return total


@triton.jit
def activated(z, ACTIVATION: tl.constexpr):
    """An activation that is not gated, by its name in planer.kernels.activations."""
    if ACTIVATION == "relu":
        result = tl.maximum(z, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACTIVATION == "gelu":
        result = 0.5 * z * (1.0 + tl.erf(z * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        result = z * tl.sigmoid(1.5957691216057308 * (z + 0.044715 * z * z * z))
    else:
        result = z * tl.sigmoid(z)
    return result


@triton.jit
def activation_slope(z, ACTIVATION: tl.constexpr):
    """Its derivative; not of ReLU, which is told from what it gave."""
    if ACTIVATION == "gelu":
        slope = 0.5 * (1.0 + tl.erf(z * 0.7071067811865476)) + z * tl.exp(-0.5 * z * z) * 0.3989422804014327
    elif ACTIVATION == "gelu_tanh":
        share = tl.sigmoid(1.5957691216057308 * (z + 0.044715 * z * z * z))
        slope = share + z * share * (1.0 - share) * (1.5957691216057308 + 0.21406444881780073 * z * z)
    else:
        share = tl.sigmoid(z)
        slope = share + z * share * (1.0 - share)
    return slope
