"""The routing plan on a GPU: a counting sort in two launches, without a sort, an atomic or a wait.

Letters in shapes: N tokens, E experts, P pairs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ELEMENTS = 4096
"""Cells of the table pairs x experts that a program works on at a time."""


@triton.jit(do_not_specialize=["P"])
def _count(expert, counts, P, E, B: tl.constexpr, EP: tl.constexpr):
    """counts[i, e]: pairs of tile i that go to expert e."""
    p = tl.program_id(0) * B + tl.arange(0, B)
    e = tl.arange(0, EP)
    chosen = tl.load(expert + p, mask=p < P, other=-1)
    hits = (chosen[:, None] == e[None, :]).to(tl.int32)
    tl.store(counts + tl.program_id(0) * E + e, tl.sum(hits, axis=0), mask=e < E)


@triton.jit(do_not_specialize=["P"])
def _place(
    expert, token, counts, order, inverse, sorted_token, offsets, token_offsets, P, E,
    K: tl.constexpr, B: tl.constexpr, BP: tl.constexpr, EP: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """A pair's place: pairs of smaller experts, those of its expert in earlier tiles, and in its tile before it."""
    tile = tl.program_id(0)
    tiles = tl.num_programs(0)
    e = tl.arange(0, EP)
    total = tl.zeros((EP,), tl.int32)
    before = tl.zeros((EP,), tl.int32)
    for start in range(0, tiles, BT):
        i = start + tl.arange(0, BT)
        part = tl.load(counts + i[:, None] * E + e[None, :], mask=(i < tiles)[:, None] & (e < E)[None, :], other=0)
        total += tl.sum(part, axis=0)
        before += tl.sum(tl.where((i < tile)[:, None], part, 0), axis=0)
    first = tl.cumsum(total, axis=0) - total
    if tile == 0:
        tl.store(offsets + e, first.to(tl.int64), mask=e < E)
        tl.store(offsets + E, P)
    i = tl.arange(0, BP)  # B and the next power of two
    p = tile * B + i
    live = (i < B) & (p < P)
    chosen = tl.load(expert + p, mask=live, other=-1)
    hits = (chosen[:, None] == e[None, :]).to(tl.int32)
    place = (first + before)[None, :] + tl.cumsum(hits, axis=0) - hits
    place = tl.sum(place * hits, axis=1).to(tl.int64)
    if K > 0:
        owner = (p // K).to(tl.int64)
        tl.store(token_offsets + owner, p, mask=live & (p % K == 0))
        if tile == 0:
            tl.store(token_offsets + P // K, P)
    else:
        owner = tl.load(token + p, mask=live, other=0)
    tl.store(inverse + p, place, mask=live)
    tl.store(order + place, p.to(tl.int64), mask=live)
    tl.store(sorted_token + place, owner, mask=live)


def plan(
    expert: Tensor, token: Tensor, num_experts: int, per_token: int | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """expert, token: [P] int64, token-major; per_token: pairs of every token, None if they differ.

    Returns order, inverse, token, offsets and, if per_token is given, token_offsets of a ``Plan``.
    """
    num_pairs = expert.shape[0]
    assert num_pairs < 2**31
    padded = max(triton.next_power_of_2(num_experts), 2)
    tile = max(ELEMENTS // padded, 16)
    grid = (max(triton.cdiv(num_pairs, tile), 1),)
    counts = expert.new_empty(grid[0], num_experts, dtype=torch.int32)
    with torch.cuda.device_of(expert):
        _count[grid](expert, counts, num_pairs, num_experts, B=tile, EP=padded)
    return place(expert, token, counts, tile, per_token)


def place(
    expert: Tensor, token: Tensor, counts: Tensor, tile: int, per_token: int | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """The second launch.  counts: [tiles, E] int32, pairs of each tile of so many pairs that go to each expert."""
    num_pairs, (tiles, num_experts) = expert.shape[0], counts.shape
    order, inverse, sorted_token = (torch.empty_like(expert) for _ in range(3))
    offsets = expert.new_empty(num_experts + 1)
    token_offsets = expert.new_empty(num_pairs // per_token + 1) if per_token else None
    padded = max(triton.next_power_of_2(num_experts), 2)
    with torch.cuda.device_of(expert):
        _place[tiles,](
            expert, token, counts, order, inverse, sorted_token, offsets, token_offsets, num_pairs, num_experts,
            K=per_token or 0, B=tile, BP=triton.next_power_of_2(tile), EP=padded, BT=max(ELEMENTS // padded, 16),
        )  # fmt: skip
    return order, inverse, sorted_token, offsets, token_offsets
