"""Shallow cuts: whole pairs of attention and feed-forward layers dropped, the first and the last pair kept.

They are the control that every search has to beat.
"""

from __future__ import annotations

from collections.abc import Iterator

from planer.search.proposers.cuts import ranked_cuts
from planer.search.space import Candidate, Space


def propose(space: Space) -> Iterator[Candidate]:
    """The best cut of every depth, from the most promising depth on, then all others."""
    for options in ranked_cuts(space, lambda blocks, kept: blocks):
        yield Candidate(options, "shallow")
