"""Proxy training by successive halving (arXiv 1502.07943): candidates are ranked by the first part of their training.

All candidates are trained to the first rung, a share of their training; the better half goes on to the next rung, and
so on.  The steps are the first ones of a candidate's full training, with its start, seed, text and teacher.  No step is
repeated: a candidate continues from its checkpoint, and so does the training of the chosen one.
``benchmarks/ranking.py`` measures how well rungs rank networks.

Losses are compared in pairs, segment by segment of the validation text.  Among the networks within one standard error
of the best one at the last rung, the fastest wins (the one-standard-error rule of Breiman et al., CART, 1984).
On the demo a 95 % interval called 0.5 to 0.8 % of the loss a tie.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from planer.paired import Paired, compare_pairs

Train = Callable[[int, float], "Losses"]
"""From a candidate's number and a share of its training to its validation losses after it."""


@dataclass(frozen=True)
class Losses:
    """Validation losses of a network by segment."""

    nll: Sequence[float]
    """Nats per token."""
    tokens: Sequence[int]
    """Of each segment."""

    @property
    def mean(self) -> float:
        """Nats per token of the whole text."""
        return float(np.average(self.nll, weights=self.tokens))

    def against(self, reference: Losses) -> Paired:
        """The paired comparison with another network on the same text."""
        return compare_pairs(self.nll, reference.nll, self.tokens)


@dataclass(frozen=True)
class Halving:
    """Result of proxy training."""

    winner: int
    share: float
    """Share of its training that the winner has completed."""
    rungs: list[dict]
    """Per candidate, ``proxy_share`` and ``proxy_nll`` of its last rung."""


def halve(count: int, rungs: Sequence[float], train: Train, latency: Sequence[float]) -> Halving:
    """Successive halving.  count: candidates.  latency: of each candidate, in any unit, for ties."""
    running, notes = list(range(count)), [{} for _ in range(count)]
    for number, share in enumerate(rungs):
        losses = {candidate: train(candidate, share) for candidate in running}
        for candidate, loss in losses.items():
            notes[candidate] = {"proxy_share": share, "proxy_nll": loss.mean}
        ranked = sorted(running, key=lambda candidate: (losses[candidate].mean, candidate))
        if len(ranked) == 1 or number == len(rungs) - 1:
            break
        running = ranked[: -(-len(ranked) // 2)]
    best = losses[ranked[0]]
    tied = [c for c in ranked if c == ranked[0] or losses[c].against(best).within_error]
    return Halving(min(tied, key=lambda c: (latency[c], ranked.index(c))), share, notes)
