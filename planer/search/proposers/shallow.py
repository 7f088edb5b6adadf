"""Shallow cuts: whole pairs of attention and feed-forward layers dropped, the first and the last pair kept.

Starting from the baseline, no network of the demo or of enwik8-mini was better at the same latency; every search has to
beat them.
"""

from __future__ import annotations

from collections.abc import Iterator

from planer.search.proposers.cuts import best_first, filled, kept_pairs
from planer.search.space import Candidate, Space


def propose(space: Space) -> Iterator[Candidate]:
    """For every number of pairs the cut with the lowest loss before training, in the order of these; then all others.

    The loss before training does not tell how many pairs are best: deep cuts start better than they end.
    """
    by_depth: dict[int, list[tuple[int, ...]]] = {}
    for kept in kept_pairs(space):
        positions = [position for pair in kept for position in pair]
        if options := filled(space, positions, space.baseline.blocks):
            by_depth.setdefault(len(kept), []).append(options)
    ranked = {depth: best_first(space, networks) for depth, networks in by_depth.items()}
    first = best_first(space, [networks[0] for networks in ranked.values()])
    others = best_first(space, [options for networks in ranked.values() for options in networks])
    for options in dict.fromkeys([*first, *others]):
        yield Candidate(options, "shallow")
