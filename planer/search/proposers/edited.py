"""Shallow cuts with mixtures of experts or sparse layers instead of dense ones, or with late attention dropped.

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
    """Alternately: every sparse option instead of all dense layers of its kind, late attention dropped, the last
    feed-forward layer a mixture, all of them mixtures; the best cut of each kind first."""
    mixture = next((spec for spec in space.specs if spec.routes and spec.size == 1), None)
    sparse = [spec for spec in space.specs if spec.starts_from and not spec.routes]
    edits = [lambda blocks, kept, spec=spec: _replaced(blocks, kept, spec) for spec in sparse]
    edits += [_early_attention]
    if mixture:
        edits += [lambda blocks, kept: _replaced(blocks, kept, mixture, last=1)]
        edits += [lambda blocks, kept: _replaced(blocks, kept, mixture)]
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


def _replaced(blocks: Sequence[BlockSpec], kept: Sequence[int], spec: BlockSpec, last: int = 0) -> list[BlockSpec]:
    """With another block instead of the last ones, or with 0 of all, of the kind that it starts from."""
    replaced = [i for i in kept if blocks[i].kind == spec.starts_from][-last:]
    return [spec if i in replaced else block for i, block in enumerate(blocks)]
