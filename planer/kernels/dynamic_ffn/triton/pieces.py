"""Which pieces of the hidden layer a block of tokens executes.

A piece is a number of neurons, not of experts, so experts of any size fill it.

Letters in shapes: N tokens, F neurons, n experts, s = F / n neurons per expert, B blocks of tokens, C pieces.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from planer.kernels.triton.tiles import Tile


@triton.jit(do_not_specialize=["N"])
def _active_pieces(
    mask, pieces, counts, N, n, F, C,
    S: tl.constexpr, PIECE: tl.constexpr, EXPERTS: tl.constexpr, CP: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """For a block: the pieces that one of its tokens executes, in order, and how many."""
    token = tl.program_id(0) * BM + tl.arange(0, BM)
    c = tl.arange(0, CP)
    first = c * PIECE // S
    last = (tl.minimum((c + 1) * PIECE, F) - 1) // S
    active = tl.zeros((CP,), tl.int32)
    for i in range(0, EXPERTS):
        expert = first + i
        inside = (token < N)[:, None] & ((c < C) & (expert <= last))[None, :]
        chosen = tl.load(mask + token.to(tl.int64)[:, None] * n + expert[None, :], mask=inside, other=0)
        active = tl.maximum(active, tl.max(chosen.to(tl.int32), axis=0))
    place = tl.cumsum(active, axis=0) - active
    tl.store(pieces + tl.program_id(0).to(tl.int64) * C + place, c, mask=active > 0)
    tl.store(counts + tl.program_id(0), tl.sum(active, axis=0))


def active_pieces(chosen: Tensor, num_neurons: int, tile: Tile) -> tuple[Tensor, Tensor]:
    """chosen: [N, n] uint8; tile: m tokens a block, n neurons a piece.

    Returns each block's pieces [B, C] int32, of which the first counts [B] int32 are set.
    """
    num_tokens, num_experts = chosen.shape
    size = num_neurons // num_experts
    blocks, count = triton.cdiv(num_tokens, tile.m), triton.cdiv(num_neurons, tile.n)
    pieces = chosen.new_empty(blocks, count, dtype=torch.int32)
    counts = chosen.new_empty(blocks, dtype=torch.int32)
    _active_pieces[blocks,](
        chosen, pieces, counts, num_tokens, num_experts, num_neurons, count,
        S=size, PIECE=tile.n, EXPERTS=(tile.n - 2) // size + 2, CP=triton.next_power_of_2(count), BM=tile.m,
        num_warps=8,
    )  # fmt: skip
    return pieces, counts
