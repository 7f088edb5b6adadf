"""Cuts of the baseline: networks that keep some of its blocks, with fewer heads.

The attention blocks of a cut start with the fewest heads of the design space.  They get more while the network keeps
its limits, in two ways: all evenly, or each as many as it can have, from the last block to the first.
In the demo, cuts of one latency that differ in this alone ended up to 5 % apart.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

from planer.search.space import Space
from planer.specs import BlockSpec

Edit = Callable[[Sequence[BlockSpec], Sequence[int]], Sequence[BlockSpec | None]]
"""From the baseline's blocks and the kept positions to the block of every position; None skips it."""

SUBSETS = 12
"""Most sets of kept pairs per number of pairs; where there are more sets, evenly spread ones."""


def pairs(space: Space) -> list[tuple[int, ...]]:
    """Positions of the baseline's blocks in runs that begin with attention: pairs, in Transformer-XL.

    Blocks before the first attention belong to the first run.
    """
    starts = [i for i, block in enumerate(space.baseline.blocks) if block.remembers] or [0]
    starts[0] = 0
    ends = [*starts[1:], space.positions]
    return [tuple(range(start, end)) for start, end in zip(starts, ends, strict=True)]


def kept_pairs(space: Space) -> Iterator[list[tuple[int, ...]]]:
    """Sets of pairs to keep, from the largest sets to the smallest: always the first and the last pair."""
    found = pairs(space)
    for count in range(len(found), 1, -1):
        for middle in _spread(found[1:-1], count - 2):
            yield [found[0], *middle, found[-1]]
    yield [found[0]]


def _spread(items: Sequence, size: int) -> Iterator[list]:
    """Subsets of this size, in the order of ``itertools.combinations``; evenly spread ones where there are too many.

    Only these are made: 40 items have 10^11 subsets of 20.
    """
    count = math.comb(len(items), size)
    step = max(1, -(-count // SUBSETS))
    return (_subset(items, size, number) for number in range(step // 2, count, step))


def _subset(items: Sequence, size: int, number: int) -> list:
    """The subset with this number in the order of ``itertools.combinations``."""
    chosen: list = []
    for after, item in zip(reversed(range(len(items))), items, strict=True):
        if len(chosen) == size:
            break
        with_item = math.comb(after, size - len(chosen) - 1)
        if number < with_item:
            chosen.append(item)
        else:
            number -= with_item
    return chosen


def filled(space: Space, kept: Iterable[int], replaced: Sequence[BlockSpec | None]) -> Iterator[tuple[int, ...]]:
    """Options of networks with blocks at the kept positions and as many heads as fit: evenly, and from the last on.

    Nothing where even the fewest heads do not fit, or the design space lacks an option.

    replaced: the block of every position [P]; None skips it.
    """
    numbers = {spec: i for i, spec in enumerate(space.specs)}
    skip = next((i for i, spec in enumerate(space.specs) if spec.identity), None)
    kept, fewest, sizes = set(kept), [], {}
    for position, spec in enumerate(replaced):
        if position not in kept or spec is None:
            fewest.append(skip)
        elif spec.has_heads:
            sizes[position] = _sizes(space, spec)
            fewest.append(sizes[position][0] if sizes[position] else None)
        else:
            fewest.append(numbers.get(spec))
    if None in fewest or not space.allows(fewest):
        return
    levels = range(1, max(map(len, sizes.values()), default=0))
    evenly = ((position, level) for level in levels for position in sizes)
    late = ((position, level) for position in reversed(sizes) for level in levels)
    for order in (evenly, late):
        options = list(fewest)
        for position, level in order:
            if level < len(sizes[position]) and options[position] == sizes[position][level - 1]:
                larger = [*options[:position], sizes[position][level], *options[position + 1 :]]
                options = larger if space.allows(larger) else options
        yield tuple(options)


def _sizes(space: Space, most: BlockSpec) -> list[int]:
    """Options of the same kind with at most as many heads, from the fewest on.

    Options that take as long as one with more heads are left out; a table from a busy machine can have them.
    """
    options: list[int] = []
    heads = {i: spec.size for i, spec in enumerate(space.specs) if spec.kind == most.kind}
    costs = space.limits[0].costs
    for option in sorted(heads, key=heads.get, reverse=True):
        if heads[option] <= most.size and (not options or costs[option] < costs[options[-1]]):
            options.append(option)
    return options[::-1]


def ranked_cuts(space: Space, edit: Edit) -> list[tuple[int, ...]]:
    """Edited cuts within the limits: the best of every depth, from the most promising depth on, then the rest.

    The loss before training ranks cuts of one depth.  It cannot rank depths: shallow cuts start better than they end.
    The expected depth is the latency's share of the pairs plus half a pair, since fewer heads save time; of two depths
    equally far from it, the deeper comes first.
    """
    depths: dict[int, dict[tuple[int, ...], None]] = {}
    for kept in kept_pairs(space):
        positions = [position for pair in kept for position in pair]
        for options in filled(space, positions, edit(space.baseline.blocks, positions)):
            depths.setdefault(len(kept), {})[options] = None
    expected = space.limits[0].share * len(pairs(space)) + 0.5
    order = sorted(depths, key=lambda depth: (abs(depth - expected), -depth))
    ranked = [_best_first(space, depths[depth]) for depth in order]
    alternating = itertools.chain.from_iterable(itertools.zip_longest(*ranked))
    return [options for options in dict.fromkeys(alternating) if options is not None]


def _best_first(space: Space, networks: Iterable[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Networks by their loss before training, lowest first; in the given order where there is no such loss."""
    return sorted(networks, key=space.start_loss) if space.start_loss else list(networks)
