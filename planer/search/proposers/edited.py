"""Shallow cuts with other blocks in them: mixtures of experts for feed-forward layers, or late attention dropped.

Attention matters more in the first half of a network (PAR, arXiv 2009.04534); what later attention costs pays for more
feed-forward layers.  A mixture starts as copies of the feed-forward layer in its place and can only gain by training:
the loss before training gives it no credit.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from planer.search.proposers.cuts import ranked_cuts
from planer.search.space import Candidate, Space
from planer.specs import BlockSpec


def propose(space: Space) -> Iterator[Candidate]:
    """In turn: attention dropped late, the last feed-forward layer a mixture, all of them mixtures; the best cut of
    each kind first."""
    mixture = next((spec for spec in space.specs if spec.routes and spec.size == 1), None)
    edits = [_early_attention]
    if mixture:
        edits += [lambda blocks, kept: _mixtures(blocks, kept, mixture, last=1)]
        edits += [lambda blocks, kept: _mixtures(blocks, kept, mixture, last=len(blocks))]
    ranked = [ranked_cuts(space, edit) for edit in edits]
    turns = itertools.chain.from_iterable(itertools.zip_longest(*ranked))
    for options in dict.fromkeys(turns):  # the last feed-forward layer can be the only one
        if options is not None:
            yield Candidate(options, "edited")


def _early_attention(blocks: Sequence[BlockSpec], kept: Sequence[int]) -> list[BlockSpec | None]:
    """Without the second half of the kept attention blocks."""
    attention = [i for i in kept if blocks[i].remembers]
    dropped = set(attention[(len(attention) + 1) // 2 :])
    return [None if i in dropped else block for i, block in enumerate(blocks)]


def _mixtures(blocks: Sequence[BlockSpec], kept: Sequence[int], mixture: BlockSpec, last: int) -> list[BlockSpec]:
    """With mixtures in place of the last feed-forward layers among the kept ones."""
    places = [i for i in kept if blocks[i].kind == mixture.starts_from][-last:]
    return [mixture if i in places else block for i, block in enumerate(blocks)]
