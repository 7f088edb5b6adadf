"""Proposers of networks, one a file, all with one interface: from a space to networks within its limits, the most
promising first."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from planer.search.proposers import argmax, edited, largest, random, shallow, solver
from planer.search.space import Candidate, Space

PROPOSERS: dict[str, Callable[[Space], Iterator[Candidate]]] = {
    "shallow": shallow.propose,
    "edited": edited.propose,
    "solver": solver.propose,
    "argmax": argmax.propose,
    "random": random.propose,
    "largest": largest.propose,
}
"""By the name that the config calls them."""
