"""The router of a mixture of experts for inference: from tokens to pairs and their plan in two launches.

Letters in shapes: N tokens, D model width, E experts, k experts per token, P = N k pairs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from planer.kernels.routing.triton.plan import place
from planer.kernels.triton.product import product
from planer.kernels.triton.tiles import GATE, interpreted


@triton.jit(do_not_specialize=["N"])
def _choose(
    x, weight, expert, gate, token, counts, N,
    D: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, K: tl.constexpr, UPCAST: tl.constexpr,
    BT: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Each token's K experts with their gates, and how often a tile chooses each expert."""
    t = tl.program_id(0) * BT + tl.arange(0, BT)
    e = tl.arange(0, EP)
    rows = tl.minimum(t, N - 1).to(tl.int64)
    logits = product(x, rows, weight, e, E, D, False, "ieee", UPCAST, BT, EP, BK)
    logits = tl.where((e < E)[None, :], logits, float("-inf"))
    score = tl.where(logits == logits, logits, float("inf"))  # as PyTorch's argmax, which takes NaN for the largest
    rank = tl.where((e < E)[None, :], K, K + 1) + tl.zeros((BT, EP), tl.int32)
    for i in tl.static_range(K):
        open_ = rank == K
        best = tl.max(tl.where(open_, score, float("-inf")), axis=1)
        first = tl.min(tl.where(open_ & (score == best[:, None]), e[None, :], EP), axis=1)
        rank = tl.where(e[None, :] == first[:, None], i, rank)
    taken = rank < K
    share = tl.exp(logits - tl.max(score, axis=1)[:, None])
    total = tl.sum(share if K == 1 else tl.where(taken, share, 0.0), axis=1)
    at = t[:, None].to(tl.int64) * K + rank
    mine = taken & (t < N)[:, None]
    tl.store(expert + at, e[None, :].to(tl.int64) + tl.zeros((BT, EP), tl.int64), mask=mine)
    tl.store(token + at, t[:, None].to(tl.int64) + tl.zeros((BT, EP), tl.int64), mask=mine)
    tl.store(gate + at, share / total[:, None], mask=mine)
    tl.store(counts + tl.program_id(0) * E + e, tl.sum(mine.to(tl.int32), axis=0), mask=e < E)


def gate(x: Tensor, weight: Tensor, k: int) -> tuple[Tensor, ...]:
    """Choose experts as ``planer.kernels.routing.top_k`` does of x weight^T, in single precision.

    x: [N, D] and weight: [E, D], of one dtype and contiguous, N at least 1.  Returns expert, gate and token, [P] in
    token-major order, and the fields of a ``Plan``.
    """
    (num_tokens, d_model), num_experts = x.shape, weight.shape[0]
    tokens, width = GATE.m, min(GATE.k, max(triton.next_power_of_2(d_model), 16))
    expert, token = (x.new_empty(num_tokens * k, dtype=torch.int64) for _ in range(2))
    gates = x.new_empty(num_tokens * k, dtype=torch.float32)
    tiles = triton.cdiv(num_tokens, tokens)
    counts = x.new_empty(tiles, num_experts, dtype=torch.int32)
    with torch.cuda.device_of(x):
        _choose[tiles,](
            x, weight, expert, gates, token, counts, num_tokens,
            D=d_model, E=num_experts, EP=max(triton.next_power_of_2(num_experts), 16), K=k,
            UPCAST=interpreted() and x.dtype == torch.bfloat16,
            BT=tokens, BK=width, num_warps=GATE.warps, num_stages=GATE.stages,
        )  # fmt: skip
    return expert, gates, token, *place(expert, token, counts, tokens * k, k)
