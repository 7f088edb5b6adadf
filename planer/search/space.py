"""The networks that may be chosen for a variant, with their limits and losses.

Letters in shapes: P positions, N options.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from planer.config import CandidatesConfig
from planer.search.constraints import Limit
from planer.specs import Architecture, BlockSpec

PathLoss = Callable[[Sequence[int]], float]
"""From a network, one option per position, to its loss in nats per token; the same network gives the same number."""


@dataclass(frozen=True)
class Candidate:
    """A network that a proposer proposes."""

    options: tuple[int, ...]
    """The number of the option at every position."""
    source: str
    """The proposer."""
    score: float | None = None
    """The proposer's score; higher is better."""
    status: str | None = None
    """Of a solver: ``optimal``, or ``cut short`` where it reached its work limit."""
    gap: float | None = None
    """``Selection.gap`` of a solver."""


@dataclass
class Space:
    """Options, limits, and losses of networks that have not been trained."""

    config: CandidatesConfig
    names: tuple[str, ...]
    """Of the options."""
    specs: tuple[BlockSpec, ...]
    """The blocks of the options [N]."""
    baseline: Architecture
    """As many positions as a network has."""
    limits: list[Limit]
    """The first one is the latency's."""
    seed: int
    start_loss: PathLoss | None = None
    """Of networks with their initial weights from the parent; None where training starts from random weights."""
    alpha: torch.Tensor | None = None
    """Architecture weights of the supernet [P, N]; None where no proposer needs one."""
    supernet_loss: PathLoss | None = None
    """Of networks as paths through the supernet."""
    scores: list[list[float]] = field(default_factory=list)
    """[P, N], the solver's last scores: with replace_one, of the incumbent of the last round."""
    incumbents: list[dict] = field(default_factory=list)
    """``options`` and ``supernet_nll`` of every incumbent of replace-one scoring."""

    @property
    def positions(self) -> int:
        """Blocks of every network, skips included."""
        return len(self.baseline.blocks)

    def network(self, options: Sequence[int]) -> Architecture:
        """The architecture of one option per position."""
        return dataclasses.replace(self.baseline, blocks=tuple(self.specs[option] for option in options))

    def allows(self, options: Sequence[int]) -> bool:
        """Whether a network keeps all limits."""
        return all(limit.of(options) <= limit.budget for limit in self.limits)
