"""Proxy training: the first steps of the training that a candidate would have."""

from __future__ import annotations

import numpy as np

from planer.architecture import Architecture
from planer.model import LanguageModel
from planer.search.halving import Losses
from planer.training.checkpoint import Checkpoint
from planer.training.recipe import Recipe
from planer.training.retrain import VALID_TOKENS
from planer.training.validate import mean_of


class ProxyTraining:
    """Trains candidates for a while and scores them; each goes on from its own checkpoint."""

    def __init__(self, recipe: Recipe, checkpoint: Checkpoint):
        """checkpoint: of the job; every network gets one beside it."""
        self._recipe, self._checkpoint = recipe, checkpoint
        self._text = recipe.valid_tokens[:VALID_TOKENS]
        self._checkpoints: dict[str, Checkpoint] = {}
        self._seconds: dict[str, float] = {}

    def __call__(self, network: Architecture, share: float) -> Losses:
        """Losses of the network once it has had this share of its training."""
        checkpoint = self._of(network)
        model, _, metrics = self._recipe.train(network, checkpoint, until=self.steps(share))
        self._seconds[network.pattern] = metrics["seconds"]
        return self._losses(model)

    def untrained(self, network: Architecture, text: np.ndarray) -> float:
        """Loss of the network at its start on a text [n], in nats per token."""
        return mean_of(*self._recipe.scored(self._recipe.start(network), text))[0]

    def reference(self, model: LanguageModel) -> float:
        """Loss of another model on the text that networks are scored on, in nats per token."""
        return self._losses(model.to(self._recipe.device)).mean

    def seconds(self, network: Architecture) -> float:
        """What the network's training has taken so far."""
        return self._seconds[network.pattern]

    def steps(self, share: float) -> int:
        """Steps that are this share of the training, at least one."""
        return max(1, round(share * self._recipe.config.steps))

    def hand_over(self, network: Architecture, path: str) -> None:
        """Write the checkpoint that the network's training goes on from."""
        self._of(network).hand_over(path)

    def delete(self) -> None:
        """Delete all checkpoints, once the choice that they led to is written."""
        for checkpoint in self._checkpoints.values():
            checkpoint.delete()

    def _of(self, network: Architecture) -> Checkpoint:
        name = network.pattern
        return self._checkpoints.setdefault(name, self._checkpoint.part(f"proxy_{len(self._checkpoints)}", name))

    def _losses(self, model: LanguageModel) -> Losses:
        nll, tokens = self._recipe.scored(model, self._text)
        return Losses(nll.tolist(), tokens.tolist())
