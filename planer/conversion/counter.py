"""Counts what converted layers execute, over real tokens: experts of split layers, neurons of thresholded ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Counter:
    """Of each layer, how many tokens executed 0, 1, 2, ... of its parts.

    A converted layer is a module with attributes ``name`` and ``counter``; it calls ``counter.add`` in every pass.
    """

    def __init__(self) -> None:
        self.real: Tensor | None = None
        """Of the next pass: which of its tokens [B, T] are no padding, or None when all are real."""
        self._histograms: dict[str, Tensor] = {}

    def add(self, name: str, executed: Tensor, available: int) -> None:
        """Note one pass of a layer.  No call waits for the device.

        executed: parts that each token ran, [...] int64.  available: the parts of the layer.
        Raises ValueError when ``real`` is a mask of another number of tokens.
        """
        tokens = executed.flatten()
        real = torch.ones_like(tokens) if self.real is None else self.real.flatten().to(tokens)
        if len(real) != len(tokens):
            raise ValueError(f"{name}: counter.real is a mask of {len(real)} tokens; the pass has {len(tokens)}")
        if name not in self._histograms:
            self._histograms[name] = tokens.new_zeros(available + 1)
        self._histograms[name].scatter_add_(0, tokens, real)

    def histogram(self, name: str) -> Tensor:
        """Real tokens that executed 0, 1, ... parts of a layer: [available + 1] int64."""
        return self._histograms[name].cpu()

    @property
    def names(self) -> list[str]:
        """Layers that ran, in the order of their first run."""
        return list(self._histograms)

    def per_token(self) -> dict[str, float]:
        """Executed parts per real token, by layer; 0 where no token was real."""
        return {name: _mean(self.histogram(name)) for name in self.names}

    def shares(self) -> dict[str, float]:
        """Executed share of the parts, by layer."""
        return {name: mean / (len(self._histograms[name]) - 1) for name, mean in self.per_token().items()}

    def share(self) -> float:
        """Executed share of the parts of all layers together."""
        return sum(self.per_token().values()) / sum(len(histogram) - 1 for histogram in self._histograms.values())


def _mean(histogram: Tensor) -> float:
    return float((histogram * torch.arange(len(histogram))).sum() / max(1, int(histogram.sum())))


@contextmanager
def counting(model: nn.Module) -> Iterator[Counter]:
    """Have the network's converted layers report to a new counter inside the context."""
    counter = Counter()
    layers = [module for module in model.modules() if hasattr(module, "counter")]
    for layer in layers:
        layer.counter = counter
    try:
        yield counter
    finally:
        for layer in layers:
            layer.counter = None
