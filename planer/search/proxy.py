"""Proxy training: the first steps of the training that a candidate would have.

Checkpoints of networks and their measured latencies are kept until the choice is written, so that a job that was killed
chooses among the same candidates and trains nothing twice.
"""

from __future__ import annotations

import hashlib
import shutil
import time

import numpy as np

from planer.latency.relative import Measurement
from planer.models import LanguageModel
from planer.search.halving import Losses
from planer.specs import Architecture
from planer.tasks.causal_lm import VALID_TOKENS
from planer.tasks.nll import mean_of
from planer.training.checkpoint import Checkpoint
from planer.training.loop import Record
from planer.training.recipe import Recipe

PARTS = "proxy"
"""Folder of all checkpoints, beside the job's own."""


class ProxyTraining:
    """Trains candidates for a while and scores them; each goes on from its own checkpoint."""

    def __init__(self, recipe: Recipe, checkpoint: Checkpoint):
        """checkpoint: of the job; every network gets one beside it."""
        self.recipe, self._checkpoint = recipe, checkpoint
        self._text = recipe.texts.valid[:VALID_TOKENS]
        self._choice = checkpoint.part(f"{PARTS}/choice", "choice")
        _, values = self._choice.load() or ({}, {"ratios": {}, "seconds": 0.0})
        self._ratios: dict[str, float] = values["ratios"]
        self._began, self._before = time.perf_counter(), values["seconds"]
        self._seconds: dict[str, float] = {}
        self.seconds_now = 0.0
        """Time of trainings since the last restart."""

    def __call__(self, network: Architecture, share: float) -> Losses:
        """Losses of the network once it has had this share of its training.

        They are kept: after a restart a training may be further than that already.
        """
        steps = self.steps(share)
        training, kept = self._part(network), self._part(network, f"after_{steps}")
        if (found := kept.load()) is None:
            began = time.perf_counter()
            model, _, metrics = self.recipe.train(network, Record(training, until=steps))
            trained = metrics["seconds"] - self._seconds.get(network.pattern, 0.0)
            self.seconds_now += min(trained, time.perf_counter() - began)  # trained: before a restart too
            nll, tokens = self.recipe.scored(model, self._text)
            found = {"nll": nll, "tokens": tokens}, {"seconds": metrics["seconds"]}
            kept.save(*found)
            self._save()
        tensors, values = found
        self._seconds[network.pattern] = max(self._seconds.get(network.pattern, 0.0), values["seconds"])
        return Losses(tensors["nll"].tolist(), tensors["tokens"].tolist())

    def measured(self, measurement: Measurement) -> Measurement:
        """The measurement, once for every network: a restart reads what was measured."""

        def once(network: Architecture) -> float:
            if network.pattern not in self._ratios:
                self._ratios[network.pattern] = measurement(network)
                self._save()
            return self._ratios[network.pattern]

        return once

    def untrained(self, network: Architecture, text: np.ndarray) -> float:
        """Loss of the network at its start on a text [n], in nats per token."""
        return mean_of(*self.recipe.scored(self.recipe.start(network), text))[0]

    def reference(self, model: LanguageModel) -> float:
        """Loss of another model on the text that networks are scored on, in nats per token."""
        nll, tokens = self.recipe.scored(model.to(self.recipe.runtime.device), self._text)
        return Losses(nll.tolist(), tokens.tolist()).mean

    def seconds_without(self, network: Architecture) -> float:
        """Time of the trainings of all other networks, before a restart too, and all other time before it."""
        return self._before + sum(seconds for name, seconds in self._seconds.items() if name != network.pattern)

    def steps(self, share: float) -> int:
        """Steps that are this share of the training, at least one."""
        return max(1, round(share * self.recipe.config.steps))

    def hand_over(self, network: Architecture, path: str) -> None:
        """Write the checkpoint that the network's training goes on from."""
        self._part(network).hand_over(path)

    def delete(self) -> None:
        """Delete all checkpoints, earlier runs' too, once the choice that they led to is written."""
        shutil.rmtree(self._checkpoint.path.parents[1] / PARTS, ignore_errors=True)

    def _save(self) -> None:
        """Keep what was measured, and the time that was no training."""
        seconds = self._before + time.perf_counter() - self._began - self.seconds_now
        self._choice.save({}, {"ratios": self._ratios, "seconds": seconds})

    def _part(self, network: Architecture, folder: str = "") -> Checkpoint:
        name = network.pattern
        return self._checkpoint.part(f"{PARTS}/{hashlib.sha256(name.encode()).hexdigest()[:16]}/{folder}", name)
