"""A feed-forward layer of few tokens that reads the weights of those neurons which are over the threshold.

One launch for the hidden layer, one for its product with w2.  Rows of weights that no token of a block needs are not
read: the other factor's where the gate alone is compared, and those of w2.  Nothing is added atomically.

Letters in shapes: N tokens, D model width, F neurons, P pieces of the hidden layer.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from planer.kernels.triton.parts import MULTIPROCESSORS, row_parts, sum_parts
from planer.kernels.triton.product import activated
from planer.kernels.triton.tiles import THRESHOLD, arithmetic, options

SPLITS = 8
"""Programs that may share the neurons of a part of the output."""


@triton.jit(do_not_specialize=["N"])
def _threshold_hidden(
    x, w1, b1, limits, hidden, counts, N,
    D: tl.constexpr, F: tl.constexpr, EARLY: tl.constexpr, ACTIVATION: tl.constexpr, GATED: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """A piece of the neurons of a block of tokens, 0 where they do not run, and how many run of each token.

    EARLY: the gate alone is compared, before the other factor.
    """
    piece = tl.program_id(0)
    token = tl.program_id(1) * BM + tl.arange(0, BM)
    neuron = piece * BN + tl.arange(0, BN)
    live = token < N
    there = neuron < F
    inside = live[:, None] & there[None, :]
    limit = tl.load(limits + neuron, mask=there, other=0.0)[None, :]
    x_at = x + token.to(tl.int64)[:, None] * D
    u_at = w1 + neuron.to(tl.int64)[:, None] * D
    z = row_parts(x_at, u_at, live, there, D, PRECISION, UPCAST, BM, BN, BK)
    total = activated(z + tl.load(b1 + neuron, mask=there, other=0.0).to(tl.float32)[None, :], ACTIVATION)
    runs = inside & (tl.where(tl.abs(total) <= limit, 0, 1) != 0)  # NaN runs
    if GATED:
        needed = there
        if EARLY:
            needed = tl.max(runs.to(tl.int32), axis=0) != 0
        z = row_parts(x_at, u_at + F * D, live, needed, D, PRECISION, UPCAST, BM, BN, BK)
        total *= z + tl.load(b1 + F + neuron, mask=needed, other=0.0).to(tl.float32)[None, :]
        if not EARLY:
            runs = inside & (tl.where(tl.abs(total) <= limit, 0, 1) != 0)
    total = tl.where(runs, total, 0.0)
    at = token.to(tl.int64)[:, None] * F + neuron[None, :]
    tl.store(hidden + at, total.to(hidden.dtype.element_ty), mask=inside)
    tl.store(counts + piece.to(tl.int64) * N + token, tl.sum(runs.to(tl.int32), axis=1), mask=live)


@triton.jit(do_not_specialize=["N"])
def _threshold_output(
    hidden, w2, b2, out, N,
    D: tl.constexpr, F: tl.constexpr, SPLIT: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """BN columns of a block of tokens from every SPLIT-th BK neurons.  With several parts out is [SPLIT, N, D]."""
    part = tl.program_id(2)
    token = tl.program_id(1) * BM + tl.arange(0, BM)
    d = tl.program_id(0) * BN + tl.arange(0, BN)
    live = token < N
    k = tl.arange(0, BK)
    hidden_at = hidden + token.to(tl.int64)[:, None] * F
    total = tl.zeros((BM, BN), tl.float32)
    for start in range(part * BK, F, SPLIT * BK):
        j = start + k
        h = tl.load(hidden_at + j[None, :], mask=live[:, None] & (j < F)[None, :], other=0.0)
        if UPCAST:
            h = h.to(tl.float32)
        needed = tl.max((h != 0.0).to(tl.int32), axis=0) != 0
        v_at = w2 + j.to(tl.int64)[:, None] * D + d[None, :]
        v = tl.load(v_at, mask=needed[:, None] & (d < D)[None, :], other=0.0)
        if UPCAST:
            v = v.to(tl.float32)
        total = tl.dot(h, v, total, input_precision=PRECISION)
    total += tl.load(b2 + d, mask=d < tl.where(part == 0, D, 0), other=0.0).to(tl.float32)[None, :]
    out_at = out + (part.to(tl.int64) * N + token)[:, None] * D + d[None, :]
    tl.store(out_at, total.to(out.dtype.element_ty), mask=live[:, None] & (d < D)[None, :])


def forward(
    x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, limits: Tensor, early: bool, activation: str = "relu"
) -> tuple[Tensor, Tensor]:
    """y [N, D], and how many neurons each token ran, [N] int64.

    x: [N, D], w1: [F, D]; b1: [F]; w2: [F, D]; b2: [D]; limits: [F], in float32.
    With w1 [2F, D] and b1 [2F] the activation is gated: act acts on the first F, and the others multiply what it gives.
    early: compare act alone, also where it is gated.
    float32, float16 or bfloat16, x and weights alike.  For inference: it has no gradient.
    """
    (num_tokens, d_model), num_neurons = x.shape, w2.shape[0]
    y = torch.empty_like(x)
    if not num_tokens:
        return y, torch.zeros(0, dtype=torch.int64, device=x.device)
    tile = THRESHOLD[arithmetic(x.dtype)]
    blocks, pieces, columns = (
        triton.cdiv(size, part) for size, part in ((num_tokens, tile.m), (num_neurons, tile.n), (d_model, tile.n))
    )
    split = min(triton.cdiv(MULTIPROCESSORS, blocks * columns), triton.cdiv(num_neurons, tile.k), SPLITS)
    sizes = {"D": d_model, "F": num_neurons, **options(x.dtype, tile)}
    hidden = x.new_empty(num_tokens, num_neurons)
    counts = x.new_empty(pieces, num_tokens, dtype=torch.int32)
    out = y if split == 1 else x.new_empty(split, num_tokens, d_model, dtype=torch.float32)
    with torch.cuda.device_of(x):
        _threshold_hidden[pieces, blocks](
            x, w1, b1, limits, hidden, counts, num_tokens,
            EARLY=early, ACTIVATION=activation, GATED=w1.shape[0] > num_neurons, **sizes,
        )  # fmt: skip
        _threshold_output[columns, blocks, split](hidden, w2, b2, out, num_tokens, SPLIT=split, **sizes)
        if split > 1:
            sum_parts(out, y)
    return y, counts.sum(0)
