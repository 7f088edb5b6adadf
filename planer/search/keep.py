"""Keep the quality, minimise the time: the fastest network whose validation loss is at most q above the baseline's.

The targets go from the loosest to the strictest; at each the best cut of the baseline is the candidate.  All candidates
have a proxy training.  The final loss is predicted from the loss after it:

    predicted final loss = proxy loss * median of (final loss / proxy loss) over networks trained to the end

The network in the middle is trained to the end first, since a prediction needs one.  Then the fastest network that is
predicted to keep the quality, and is faster than all that were found to keep it, is trained to the end.  This repeats
until there is none, or the allowed number was trained.  Only networks trained to the end count.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from planer.errors import UserError
from planer.search.halving import Train


@dataclass
class Step:
    """One network on the path."""

    latency: float
    """Over the baseline's."""
    proxy_nll: float
    final_nll: float | None = None
    predicted_nll: float | None = None


def keep(
    loss: float, reference: float, latencies: Sequence[float], train: Train, proxy_share: float, trained: int
) -> tuple[int | None, list[Step]]:
    """The number of the fastest network found to keep the quality, or None, and the path.

    loss: q.  reference: the baseline's validation loss.  latencies: of the networks, over the baseline's.  train: takes
    their numbers.  trained: most networks to train to the end.
    """
    path = [Step(latency, train(number, proxy_share).mean) for number, latency in enumerate(latencies)]
    bound, kept = (1 + loss) * reference, None
    following: int | None = len(path) // 2
    for _ in range(trained):
        if following is None:
            break
        path[following].final_nll = train(following, 1.0).mean
        finished = [step for step in path if step.final_nll is not None]
        fall = statistics.median(step.final_nll / step.proxy_nll for step in finished)
        for step in path:
            step.predicted_nll = step.proxy_nll * fall
        kept = min(
            (i for i, s in enumerate(path) if s.final_nll is not None and s.final_nll <= bound),
            key=lambda i: path[i].latency,
            default=None,
        )
        following = _following(path, bound, kept)
    return kept, path


def _following(path: Sequence[Step], bound: float, kept: int | None) -> int | None:
    """The fastest network that is predicted to keep the quality; without one, while none was found to keep it, the one
    with the lowest prediction."""
    faster = [
        i
        for i, step in enumerate(path)
        if step.final_nll is None and (kept is None or step.latency < path[kept].latency)
    ]
    hopeful = [i for i in faster if path[i].predicted_nll <= bound]
    if hopeful:
        return min(hopeful, key=lambda i: path[i].latency)
    return min(faster, key=lambda i: path[i].predicted_nll, default=None) if kept is None else None


def refusal(name: str, loss: float, reference: float, path: Sequence[Step], patterns: Sequence[str]) -> UserError:
    """The error when no network keeps the quality; it names the best that was trained to the end."""
    done = [(step.final_nll, i) for i, step in enumerate(path) if step.final_nll is not None]
    best_nll, best = min(done)
    return UserError(
        f"{name}: no network that was trained to the end has a validation nll of at most {loss:g} above the baseline's "
        f"{reference:.4f}; the best, {patterns[best]} at {path[best].latency:.3f} of its latency, is "
        f"{best_nll / reference - 1:+.4f}; ask for a larger share, allow slower networks in keep.targets, or raise "
        "distill.steps"
    )
