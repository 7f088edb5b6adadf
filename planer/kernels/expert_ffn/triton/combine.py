"""Sum what the pairs of each token made: a gather, so the order of the sum is fixed and nothing is added atomically.

Letters in shapes: N tokens, D model width, P pairs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TOKENS, WIDTH = 4, 512
"""Tokens and columns of a program of 4 warps: 16 bytes a thread and load in half precision."""


@triton.jit(do_not_specialize=["N"])
def _combine(
    rows, inverse, token_offsets, gate, out, N, D: tl.constexpr, K: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr
):
    token = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)
    live = token < N
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    begin = tl.load(token_offsets + token, mask=live, other=0)
    count = tl.load(token_offsets + token + 1, mask=live, other=0) - begin
    most = tl.max(count, axis=0) if K == 0 else K
    total = tl.zeros((BT, BD), tl.float32)
    for i in range(0, most):
        mine = live & (i < count)
        row = tl.load(inverse + begin + i, mask=mine, other=0)
        part = tl.load(rows + row[:, None] * D + d[None, :], mask=mine[:, None] & (d < D)[None, :], other=0.0)
        part = part.to(tl.float32)
        if gate is not None:
            part *= tl.load(gate + begin + i, mask=mine, other=0.0).to(tl.float32)[:, None]
        total += part
    tl.store(
        out + token[:, None] * D + d[None, :],
        total.to(out.dtype.element_ty),
        mask=live[:, None] & (d < D)[None, :],
    )


def combine(
    rows: Tensor, inverse: Tensor, token_offsets: Tensor, gate: Tensor | None, per_token: int, out: Tensor
) -> Tensor:
    """out[t] = sum over the pairs q of token t of gate[q] rows[inverse[q]]; returns out, whose every row is written.

    rows: [P, D]; inverse, gate: [P]; token_offsets: [N + 1]; per_token: pairs of every token, 0 if they differ;
    out: [N, D].
    """
    num_tokens, d_model = out.shape
    width = min(triton.next_power_of_2(d_model), WIDTH)
    with torch.cuda.device_of(out):
        _combine[triton.cdiv(num_tokens, TOKENS), triton.cdiv(d_model, width)](
            rows, inverse, token_offsets, gate, out, num_tokens,
            D=d_model, K=per_token, BT=TOKENS, BD=width, num_warps=4,
        )  # fmt: skip
    return out
