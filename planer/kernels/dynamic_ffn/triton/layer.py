"""A dense feed-forward layer of which each token executes its own experts, in one pass over blocks of tokens.

A block keeps its tokens and their sums on chip and goes through those pieces of the hidden layer that at least one of
its tokens executes; neurons that a token does not execute are set to zero.  No neuron of another piece is read or
computed, nothing but the result is written, and nothing is added atomically.  Rows wider than ON_CHIP take two passes:
``wide``.

Letters in shapes: N tokens, D model width, F neurons, n experts, s = F / n neurons per expert, B blocks of tokens,
C pieces of the hidden layer.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from planer.kernels.dynamic_ffn.triton import wide
from planer.kernels.dynamic_ffn.triton.pieces import active_pieces
from planer.kernels.triton.parts import MULTIPROCESSORS, row_parts, sum_parts
from planer.kernels.triton.product import activated
from planer.kernels.triton.tiles import arithmetic, dynamic_tile, options

ON_CHIP = 512
"""Widest rows that a block of tokens and its sums can keep on chip."""
SPLITS = 4
"""Programs that may share a block's pieces."""


@triton.jit(do_not_specialize=["N"])
def _dynamic_ffn(
    x, w1, b1, w2, b2, mask, pieces, counts, out, N,
    D: tl.constexpr, DP: tl.constexpr, F: tl.constexpr, S: tl.constexpr, SPLIT: tl.constexpr,
    ACTIVATION: tl.constexpr, GATED: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """SPLIT programs a block of tokens; with more than one, out is [SPLIT, N, D] in float32 and b2 is in the first."""
    even: tl.constexpr = D == DP and F % BN == 0
    factors: tl.constexpr = 2 if GATED else 1
    block = tl.program_id(0) // SPLIT
    part = tl.program_id(0) % SPLIT
    token = block * BM + tl.arange(0, BM)
    live = token < N
    d = tl.arange(0, DP)
    r = tl.arange(0, BN)
    x_at = x + block.to(tl.int64) * (BM * D)
    rows = tl.arange(0, BM)[:, None] * D
    chosen_at = mask + block.to(tl.int64) * (BM * (F // S)) + tl.arange(0, BM)[:, None] * (F // S)
    pieces += block.to(tl.int64) * ((F + BN - 1) // BN)
    if BK == DP:
        tokens = tl.load(x_at + rows + d[None, :], mask=live[:, None] & (d < D)[None, :], other=0.0)
        if UPCAST:
            tokens = tokens.to(tl.float32)
    total = tl.zeros((BM, DP), tl.float32)
    for i in range(part, tl.load(counts + block), SPLIT):
        piece = tl.load(pieces + i)
        neuron = piece * BN + r
        there = neuron < F
        v_at = w2 + piece.to(tl.int64) * (BN * D) + r[:, None] * D
        hidden = 1.0
        for factor in tl.static_range(factors):
            u_at = w1 + factor * (F * D) + piece.to(tl.int64) * (BN * D) + r[:, None] * D
            if BK == DP:
                if even:
                    u = tl.load(u_at + d[None, :])
                else:
                    u = tl.load(u_at + d[None, :], mask=there[:, None] & (d < D)[None, :], other=0.0)
                if UPCAST:
                    u = u.to(tl.float32)
                z = tl.dot(tokens, tl.trans(u), input_precision=PRECISION)
            else:
                z = row_parts(x_at + rows, u_at, live, there, D, PRECISION, UPCAST, BM, BN, BK)
            z += tl.load(b1 + factor * F + neuron, mask=there, other=0.0).to(tl.float32)[None, :]
            hidden = activated(z, ACTIVATION) if factor == 0 else hidden * z
        chosen = tl.load(chosen_at + (neuron // S)[None, :], mask=live[:, None] & there[None, :], other=0)
        hidden = tl.where(chosen != 0, hidden, 0.0)
        if even:
            v = tl.load(v_at + d[None, :])
        else:
            v = tl.load(v_at + d[None, :], mask=there[:, None] & (d < D)[None, :], other=0.0)
        if UPCAST:
            v = v.to(tl.float32)
        total = tl.dot(hidden.to(v.dtype), v, total, input_precision=PRECISION)
    out_at = out + (part.to(tl.int64) * N + block * BM) * D + rows
    # Half of the columns after the other: all at once need more registers than a thread has.
    left, right = tl.split(tl.permute(tl.reshape(total, (BM, 2, DP // 2)), (0, 2, 1)))
    for half in tl.static_range(2):
        total = left if half == 0 else right
        d = half * (DP // 2) + tl.arange(0, DP // 2)
        total += tl.load(b2 + d, mask=d < tl.where(part == 0, D, 0), other=0.0).to(tl.float32)[None, :]
        tl.store(out_at + d[None, :], total.to(out.dtype.element_ty), mask=live[:, None] & (d < D)[None, :])


def forward(
    x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, mask: Tensor, activation: str = "relu"
) -> Tensor:
    """y[t] = b2 + sum over the neurons j of the experts that token t executes of w2[j] act(w1[j] . x[t] + b1[j]).

    x: [N, D], w1: [F, D]; b1: [F]; w2: [F, D]; b2: [D]; mask: [N, n] bool.  Returns [N, D].
    With w1 [2F, D] and b1 [2F] the activation is gated: act acts on the first F, and the others multiply what it gives.
    float32, float16 or bfloat16, x and weights alike.  For inference: it has no gradient.
    """
    num_tokens, d_model = x.shape
    num_neurons = w2.shape[0]
    gated = w1.shape[0] > num_neurons
    y = torch.empty_like(x)
    if not num_tokens:
        return y
    chosen = mask.view(torch.uint8)
    if d_model > ON_CHIP:
        return wide.forward(x, w1, b1, w2, b2, chosen, activation, y)
    padded = max(triton.next_power_of_2(d_model), 16)
    tile = dynamic_tile(arithmetic(x.dtype), gated).fitted(k=d_model)
    blocks = triton.cdiv(num_tokens, tile.m)
    split = min(triton.cdiv(MULTIPROCESSORS, blocks), SPLITS)
    out = y if split == 1 else x.new_empty(split, num_tokens, d_model, dtype=torch.float32)
    with torch.cuda.device_of(x):
        pieces, counts = active_pieces(chosen, num_neurons, tile)
        _dynamic_ffn[blocks * split,](
            x, w1, b1, w2, b2, chosen, pieces, counts, out, num_tokens,
            D=d_model, DP=padded, F=num_neurons, S=num_neurons // mask.shape[1], SPLIT=split,
            ACTIVATION=activation, GATED=gated, **options(x.dtype, tile),
        )  # fmt: skip
        if split > 1:
            sum_parts(out, y)
    return y
