"""Telling the last few networks apart by the beginning of their own training.

A supernet that was trained for about as long as one network orders networks only roughly, and may prefer the wrong kind
throughout: what the shared weights have not learnt yet counts against every network that needs it.  What a network has
learnt after a part of its own training says more about where it will end, the more the longer that part is.  So the
solver's best networks, and some drawn at random in case the supernet is wrong about all of those, start to train: all
of them for a while, the better half for as long again (successive halving, arXiv 1502.07943, with one halving).  The
steps are the first ones of the very retraining that each would have, with its seed, so what decides is the network
together with the random weights and the text it begins with: where trainings of one network scatter as much as
networks do, a trial under another seed could not tell them apart.  How long a part must be, ``benchmarks/ranking.py``
measures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace

import numpy as np
import torch

from planer.architecture import Architecture
from planer.search.solve import Selection
from planer.training.checkpoint import Checkpoint
from planer.training.retrain import LanguageModelling, retrain

HALF, WHOLE = 0.5, 1.0
"""Lengths of a trial: of all candidates, and of the better half of them."""

Trial = Callable[[Architecture, float], float]
"""From a network and the part of a trial that it has run by then to its validation loss in nats per token."""


class Beginning(LanguageModelling):
    """The first steps of a retraining, at the learning rates that they have in the whole of it."""

    name = "trial"

    def __init__(self, *texts_and_more, share: float, **options):
        super().__init__(*texts_and_more, **options)
        self.total_steps = max(1, round(share * self.total_steps))


class Trials:
    """Beginnings of the retrainings of one network after another, a Trial."""

    def __init__(
        self,
        config: SimpleNamespace,
        train: np.ndarray,
        text: np.ndarray,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
        checkpoint: Checkpoint,
    ):
        """config: the sections retrain and sample_architecture.  train: the training text [n]; text: what is scored
        afterwards [m].  seed: of the retraining.  checkpoint: of the job; every network gets one of its own beside it.
        """
        self._config = dataclasses.replace(config.retrain, eval_steps=config.retrain.steps)
        self._share = config.sample_architecture.trial_share
        self._texts = train, text
        self._how = (seed, device, dtype)
        self._checkpoint = checkpoint
        self._used: dict[str, Checkpoint] = {}

    def __call__(self, network: Architecture, part: float) -> float:
        name = network.pattern
        checkpoint = self._used.setdefault(name, self._checkpoint.part(f"trial_{len(self._used)}", name))
        beginning = partial(Beginning, share=part * self._share)
        _, _, metrics = retrain(network, *self._texts, self._config, *self._how, checkpoint, objective=beginning)
        print(f"{part:.0%} of a trial: {name} {metrics['valid_nll']:.4f} nats per token", flush=True)
        return metrics["valid_nll"]

    def forget(self) -> None:
        """Delete the checkpoints, once the choice that they led to is written."""
        for checkpoint in self._used.values():
            checkpoint.delete()


def best_by_trial(
    candidates: Sequence[Selection], trial: Callable[[Selection, float], float]
) -> tuple[int, list[dict]]:
    """The number of the candidate with the lowest loss after a whole trial, which the better half runs.

    Returns also a note per candidate: ``trial_part``, how much of a trial it ran, and ``trial_nll`` after it.  One that
    is alone has won without a trial, and its note is empty.
    """
    if len(candidates) == 1:
        return 0, [{}]

    def notes_at(part: float, numbers: Sequence[int]) -> dict[int, dict]:
        return {k: {"trial_part": part, "trial_nll": trial(candidates[k], part)} for k in numbers}

    def by_loss(notes: dict[int, dict]) -> list[int]:
        return sorted(notes, key=lambda k: notes[k]["trial_nll"])

    first = notes_at(HALF, range(len(candidates)))
    last = notes_at(WHOLE, by_loss(first)[: -(-len(first) // 2)])
    notes = first | last
    return by_loss(last)[0], [notes[k] for k in range(len(candidates))]
