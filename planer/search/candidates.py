"""From proposals to one network: candidates are measured, trained for a while, and halved until one is left.

Networks are measured alternately with the baseline before they are trained.  Those more than 1 % slower than the target
are rejected.  Their bias lowers the budget of their proposer, which then proposes again, so that its best networks get
fewer heads before worse networks are considered:

    budget_{k+1} = min(target, target / median over its networks that were too slow of measured / estimated)

By the table, too, a network never exceeds its target.  Where no network is fast enough, the fastest one that keeps the
limits by the table is used, or else the fastest one.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice

from planer.errors import UserError
from planer.latency.relative import Measurement
from planer.search.constraints import Limit
from planer.search.halving import Losses, halve
from planer.search.proposers import PROPOSERS
from planer.search.space import Candidate, Space

ATTEMPTS = 3
"""Most proposals per wanted candidate, of one proposer under one budget."""

TOLERANCE = 0.01
"""A candidate may be slower than its target by this share: half of a trained network's tolerance, since measurements
differ by the other half."""

Proxy = Callable[[Candidate, float], Losses]
"""From a candidate and a share of its training to its validation losses after it."""


@dataclass
class Measured:
    """Candidates, and all latencies that were measured."""

    target: Limit
    """Of the latency, as requested."""
    measurement: Measurement | None
    """None: the table is trusted."""
    candidates: dict[tuple[int, ...], Candidate] = field(default_factory=dict)
    """Those that are fast enough, by their options."""
    rejected: dict[tuple[int, ...], Candidate] = field(default_factory=dict)
    """Those that are too slow."""
    ratios: dict[tuple[int, ...], float] = field(default_factory=dict)
    """Measured latencies over the baseline's."""
    rounds: list[dict] = field(default_factory=list)
    """Measurements with their budgets, in order."""

    def estimated(self, options: tuple[int, ...]) -> float:
        """Latency by the table over the baseline's."""
        return self.target.of(options) / self.target.baseline

    def latency(self, options: tuple[int, ...]) -> float:
        """Over the baseline's, measured where it was."""
        return self.ratios.get(options, self.estimated(options))

    def add(self, candidate: Candidate, space: Space) -> bool:
        """Measure a new network; whether it is another candidate."""
        options = candidate.options
        if options in self.candidates or options in self.rejected:
            return False
        fits = space.allows(options)
        if fits and self.measurement is not None:
            self.ratios[options] = self.measurement(space.network(options))
            fits = self.ratios[options] <= (1 + TOLERANCE) * self.target.share
            self.rounds.append(
                {
                    "budget": space.limits[0].share,
                    "estimated": self.estimated(options),
                    "measured": self.ratios[options],
                    "options": list(options),
                }
            )
        (self.candidates if fits else self.rejected)[options] = candidate
        return fits

    def corrected(self, source: str) -> Limit:
        """The latency limit whose networks meet the target when they are as far off as this proposer's that were too
        slow, in the median; the target where there are none."""
        slow = [options for options, candidate in self.rejected.items() if candidate.source == source]
        biases = [self.ratios[options] / self.estimated(options) for options in slow if options in self.ratios]
        return self.target.at(self.target.share / max(1.0, statistics.median(biases))) if biases else self.target


def measured_candidates(space: Space, measurement: Measurement | None) -> Measured:
    """Networks of all proposers that are fast enough, as many of each as the config wants where it finds them.

    Raises UserError when there is no network at all.
    """
    found = Measured(space.limits[0], measurement)
    for name, count in space.config.proposers.items():
        for left in reversed(range(space.config.corrections + 1)):
            if count:
                space.limits[0] = found.corrected(name)
                count -= _add_proposals(found, space, name, count, correct=left > 0)
    space.limits[0] = found.target
    if not found.candidates and not found.rejected:
        names = ", ".join(name for name, count in space.config.proposers.items() if count)
        raise UserError(
            f"{found.target.name} {found.target.share:g}: no network of the proposers {names} is within the limits; "
            f"choose a larger {found.target.name}"
        )
    return found


def _add_proposals(found: Measured, space: Space, name: str, count: int, correct: bool) -> int:
    """Measure a proposer's networks under the present budget, and return how many are candidates.

    correct: stop at the first one that is too slow, since the budget will be corrected.
    """
    added = 0
    for candidate in islice(PROPOSERS[name](space), ATTEMPTS * count):
        slow = len(found.rejected)
        added += found.add(candidate, space)
        if added == count or (correct and len(found.rejected) > slow and candidate.options in found.ratios):
            break
    return added


def choose(space: Space, measurement: Measurement | None, proxy: Proxy) -> tuple[Candidate, dict]:
    """The best candidate by proxy training, and the notes that architecture.yaml keeps on the choice.

    Raises UserError when no network keeps the limits.
    """
    found = measured_candidates(space, measurement)
    running = list(found.candidates.values())
    if not running:  # nothing is fast enough: the paper's argmax ignores limits
        slow = found.rejected.values()
        running = [min(slow, key=lambda c: (not space.allows(c.options), found.latency(c.options)))]
        print(f"no network is fast enough; the fastest is used: {found.latency(running[0].options):.3f}", flush=True)

    def train(number: int, share: float) -> Losses:
        candidate = running[number]
        losses = proxy(candidate, share)
        print(
            f"{candidate.source} {space.network(candidate.options).pattern}: {losses.mean:.4f} nats per token after "
            f"{share:.0%} of its training",
            flush=True,
        )
        return losses

    halving = halve(len(running), space.config.rungs, train, [found.latency(c.options) for c in running])
    winner = running[halving.winner]
    return winner, {
        "chosen_by": "proxy training" if len(running) > 1 else winner.source,
        "source": winner.source,
        "status": winner.status,
        "gap": winner.gap,
        "score": winner.score,
        "closed_loop": found.rounds,
        "candidates": [
            described(space, found, candidate) | notes for candidate, notes in zip(running, halving.rungs, strict=True)
        ],
    }


def described(space: Space, found: Measured, candidate: Candidate) -> dict:
    """A candidate's proposer, score, latencies over the baseline's, and loss in the supernet."""
    return {
        "pattern": space.network(candidate.options).pattern,
        "source": candidate.source,
        "status": candidate.status,
        "score": candidate.score,
        "estimated": found.estimated(candidate.options),
        "measured": found.ratios.get(candidate.options),
        "supernet_nll": space.supernet_loss(candidate.options) if space.supernet_loss else None,
    }
