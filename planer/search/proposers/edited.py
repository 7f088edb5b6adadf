"""Shallow cuts with other blocks: mixtures of experts instead of feed-forward layers, or late attention dropped.

Attention matters more in the first half of a network (PAR, arXiv 2009.04534).  Without late attention there is time for
more feed-forward layers.  A mixture starts as copies of the feed-forward layer, so it gains by training alone: the loss
before training is no measure of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from planer.search.proposers.cuts import ranked_cuts
from planer.search.space import Candidate, Space
from planer.specs import BlockSpec


def propose(space: Space) -> Iterator[Candidate]:
    """Alternately: late attention dropped, the last feed-forward layer a mixture, all of them mixtures; the best cut of
    each kind first."""
    mixture = next((spec for spec in space.specs if spec.routes and spec.size == 1), None)
    edits = [_early_attention]
    if mixture:
        edits += [lambda blocks, kept: _mixtures(blocks, kept, mixture, last=1)]
        edits += [lambda blocks, kept: _mixtures(blocks, kept, mixture, last=len(blocks))]
    ranked = [ranked_cuts(space, edit) for edit in edits]
    alternating = itertools.chain.from_iterable(itertools.zip_longest(*ranked))
    for options in dict.fromkeys(alternating):  # the last feed-forward layer can be the only one
        if options is not None:
            yield Candidate(options, "edited")


def _early_attention(blocks: Sequence[BlockSpec], kept: Sequence[int]) -> list[BlockSpec | None]:
    """Without the second half of the kept attention blocks."""
    attention = [i for i in kept if blocks[i].remembers]
    dropped = set(attention[(len(attention) + 1) // 2 :])
    return [None if i in dropped else block for i, block in enumerate(blocks)]


def _mixtures(blocks: Sequence[BlockSpec], kept: Sequence[int], mixture: BlockSpec, last: int) -> list[BlockSpec]:
    """With mixtures instead of the last feed-forward layers among the kept ones."""
    replaced = [i for i in kept if blocks[i].kind == mixture.starts_from][-last:]
    return [mixture if i in replaced else block for i, block in enumerate(blocks)]
