"""Layers whose rows are too wide to be kept on chip: one launch for the hidden layer, one for its product with w2.

Both go through those pieces of the hidden layer that at least one token of a block executes, a part of the width at a
time.  Only these pieces of the hidden layer are written and read.

Letters in shapes: N tokens, D model width, F neurons, n experts, B blocks of tokens, C pieces of the hidden layer.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from planer.kernels.dynamic_ffn.triton.pieces import active_pieces
from planer.kernels.triton.parts import row_parts
from planer.kernels.triton.product import activated
from planer.kernels.triton.tiles import WIDE, arithmetic, options

COLUMNS = 128
"""Columns of the output that a program makes."""


@triton.jit(do_not_specialize=["N"])
def _wide_hidden(
    x, w1, b1, mask, pieces, counts, hidden, N,
    D: tl.constexpr, F: tl.constexpr, S: tl.constexpr, ACTIVATION: tl.constexpr, GATED: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """The neurons of one piece of a block of tokens after the activation; 0 where a token does not execute them."""
    block = tl.program_id(0)
    i = tl.program_id(1)
    if i >= tl.load(counts + block):
        return
    at = block.to(tl.int64) * ((F + BN - 1) // BN) + i
    piece = tl.load(pieces + at)
    m = tl.arange(0, BM)
    r = tl.arange(0, BN)
    live = block * BM + m < N
    neuron = piece * BN + r
    there = neuron < F
    x_at = x + block.to(tl.int64) * (BM * D) + m[:, None] * D
    u_at = w1 + piece.to(tl.int64) * (BN * D) + r[:, None] * D
    z = row_parts(x_at, u_at, live, there, D, PRECISION, UPCAST, BM, BN, BK)
    total = activated(z + tl.load(b1 + neuron, mask=there, other=0.0).to(tl.float32)[None, :], ACTIVATION)
    if GATED:
        z = row_parts(x_at, u_at + F * D, live, there, D, PRECISION, UPCAST, BM, BN, BK)
        total *= z + tl.load(b1 + F + neuron, mask=there, other=0.0).to(tl.float32)[None, :]
    chosen_at = mask + block.to(tl.int64) * (BM * (F // S)) + m[:, None] * (F // S) + (neuron // S)[None, :]
    chosen = tl.load(chosen_at, mask=live[:, None] & there[None, :], other=0)
    total = tl.where(chosen != 0, total, 0.0)
    hidden_at = hidden + at * (BM * BN) + m[:, None] * BN + r[None, :]
    tl.store(hidden_at, total.to(hidden.dtype.element_ty))


@triton.jit(do_not_specialize=["N"])
def _wide_output(
    hidden, w2, b2, pieces, counts, out, N,
    D: tl.constexpr, F: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """BN columns of a block of tokens, BK neurons at a time."""
    block = tl.program_id(0)
    m = tl.arange(0, BM)
    r = tl.arange(0, BK)
    d = tl.program_id(1) * BN + tl.arange(0, BN)
    first = block.to(tl.int64) * ((F + BK - 1) // BK)
    hidden_at = hidden + first * (BM * BK) + m[:, None] * BK + r[None, :]
    total = tl.zeros((BM, BN), tl.float32)
    for i in range(0, tl.load(counts + block)):
        piece = tl.load(pieces + first + i)
        h = tl.load(hidden_at)
        inside = (piece * BK + r < F)[:, None] & (d < D)[None, :]
        v = tl.load(w2 + piece.to(tl.int64) * (BK * D) + r[:, None] * D + d[None, :], mask=inside, other=0.0)
        if UPCAST:
            h, v = h.to(tl.float32), v.to(tl.float32)
        total = tl.dot(h, v, total, input_precision=PRECISION)
        hidden_at += BM * BK
    total += tl.load(b2 + d, mask=d < D, other=0.0).to(tl.float32)[None, :]
    out_at = out + block.to(tl.int64) * (BM * D) + m[:, None] * D + d[None, :]
    tl.store(out_at, total.to(out.dtype.element_ty), mask=(block * BM + m < N)[:, None] & (d < D)[None, :])


def forward(
    x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, chosen: Tensor, activation: str, out: Tensor
) -> Tensor:
    """Writes the layer's output to out [N, D] and returns it.  chosen: the mask as uint8; the rest as in ``layer``."""
    (num_tokens, d_model), num_neurons = x.shape, w2.shape[0]
    tile, columns = WIDE[arithmetic(x.dtype)], min(COLUMNS, triton.next_power_of_2(d_model))
    sizes = {"D": d_model, "F": num_neurons}
    with torch.cuda.device_of(x):
        pieces, counts = active_pieces(chosen, num_neurons, tile)
        blocks, count = pieces.shape
        hidden = x.new_empty(blocks, count, tile.m, tile.n)
        _wide_hidden[blocks, count](
            x, w1, b1, chosen, pieces, counts, hidden, num_tokens,
            S=num_neurons // chosen.shape[1], ACTIVATION=activation, GATED=w1.shape[0] > num_neurons, **sizes,
            **options(x.dtype, tile),
        )  # fmt: skip
        _wide_output[blocks, triton.cdiv(d_model, columns)](
            hidden, w2, b2, pieces, counts, out, num_tokens, **sizes,
            **options(x.dtype, replace(tile, n=columns, k=tile.n)),
        )  # fmt: skip
    return out
