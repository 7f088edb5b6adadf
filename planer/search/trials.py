"""Telling the last few networks apart by training each of them for a while.

A supernet that was trained for about as long as one network orders networks only roughly.  What a network has learnt
after a part of its own training says more about where it will end (successive halving, arXiv 1502.07943), so the best
few by the supernet are trained from random weights for a share of the steps, on the same text, with a schedule of that
length, and the one with the lowest validation loss is taken.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import numpy as np
import torch

from planer.architecture import Architecture
from planer.config import RetrainConfig, derive_seed
from planer.search.select import Selection
from planer.training.checkpoint import Checkpoint
from planer.training.retrain import LanguageModelling, retrain

Trial = Callable[[Architecture], float]
"""From a network to its validation loss in nats per token after a short training."""


class ShortTraining(LanguageModelling):
    """What progress and messages call it."""

    name = "trial"


class Trials:
    """Short trainings of one network after another, a Trial.  All start from the same seed."""

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
        afterwards [m].  checkpoint: of the job; every network gets one of its own beside it.
        """
        self._config = shortened(config.retrain, config.sample_architecture.trial_share)
        self._texts = train, text
        self._how = (derive_seed(seed, "trial"), device, dtype)
        self._checkpoint, self._used = checkpoint, []

    def __call__(self, network: Architecture) -> float:
        checkpoint = self._checkpoint.part(f"trial_{len(self._used)}", network.pattern)
        self._used.append(checkpoint)
        _, _, metrics = retrain(network, *self._texts, self._config, *self._how, checkpoint, objective=ShortTraining)
        print(f"trial {len(self._used)}: {network.pattern} {metrics['valid_nll']:.4f} nats per token", flush=True)
        return metrics["valid_nll"]

    def forget(self) -> None:
        """Delete the checkpoints, once the choice that they led to is written."""
        for checkpoint in self._used:
            checkpoint.delete()


def shortened(config: RetrainConfig, share: float) -> RetrainConfig:
    """A retraining of this share of the steps, its warm-up as much shorter, validated at the end alone."""
    steps = max(1, round(share * config.steps))
    optimizer = dataclasses.replace(config.optimizer, warmup_steps=round(share * config.optimizer.warmup_steps))
    return dataclasses.replace(config, steps=steps, eval_steps=steps, optimizer=optimizer)


def best_by_trial(
    solutions: Sequence[Selection],
    trial: Callable[[Selection], float],
    measured: Callable[[Selection], float] | None,
    ceiling: float,
) -> tuple[int, list[dict]]:
    """The number of the solution with the lowest loss of those whose measured latency is at most ``ceiling``.

    The first solution has been measured before and is good enough.  The others are measured, the best first, until one
    is; without ``measured`` none is.  Returns also a note per solution: ``trial_nll``, and ``measured`` or None.
    """
    notes = [{"trial_nll": trial(solution), "measured": None} for solution in solutions]
    for number in sorted(range(len(notes)), key=lambda k: notes[k]["trial_nll"]):
        if number == 0 or measured is None:
            break
        notes[number]["measured"] = measured(solutions[number])
        if notes[number]["measured"] <= ceiling:
            break
    return number, notes
