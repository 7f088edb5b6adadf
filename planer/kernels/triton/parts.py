"""Products of a block of tokens, a part of their rows at a time, and sums that several programs share.

Letters in shapes: N tokens, D model width; a program makes BM x BN numbers, BK at a time.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

MULTIPROCESSORS = 132
"""Of an H200, which this number of programs keeps busy."""


@triton.jit
def row_parts(
    x_at, u_at, live, there, D: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """A block of tokens times a piece of the neurons, a part of the rows at a time, in float32: [BM, BN].

    x_at: [BM, 1] and u_at: [BN, 1], where rows begin; live: [BM] and there: [BN], which there are.
    """
    k = tl.arange(0, BK)
    x_at += k[None, :]
    u_at += k[None, :]
    total = tl.zeros((BM, BN), tl.float32)
    for start in range(0, D, BK):
        inside = (start + k < D)[None, :]
        x = tl.load(x_at, mask=live[:, None] & inside, other=0.0)
        u = tl.load(u_at, mask=there[:, None] & inside, other=0.0)
        if UPCAST:
            x, u = x.to(tl.float32), u.to(tl.float32)
        total = tl.dot(x, tl.trans(u), total, input_precision=PRECISION)
        x_at += BK
        u_at += BK
    return total


@triton.jit(do_not_specialize=["size"])
def _sum_parts(parts, out, size, SPLIT: tl.constexpr, B: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    total = tl.zeros((B,), tl.float32)
    for part in tl.static_range(SPLIT):
        total += tl.load(parts + part * size + i, mask=i < size, other=0.0)
    tl.store(out + i, total.to(out.dtype.element_ty), mask=i < size)


def sum_parts(parts: Tensor, out: Tensor) -> None:
    """Write the sum over the first dimension of parts [S, N, D], in float32, to out [N, D]."""
    _sum_parts[triton.cdiv(out.numel(), 1024),](parts, out, out.numel(), SPLIT=len(parts), B=1024)
