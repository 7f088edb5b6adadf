"""Batches of samples in random order, epoch after epoch, with random access by step.

A resumed run needs no state of an iterator.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from planer.errors import UserError
from planer.seed import derive_seed

POOL = 32
"""Batches whose samples are sorted by length together.  Larger pools save more padding and mix less."""


class EpochBatches:
    """Every epoch has count // batch batches of different samples; the samples left over change with the epoch.

    lengths: of the samples, [count]; those of one batch are then about as long as one another.
    Raises UserError when there are fewer samples than a batch has.
    """

    def __init__(self, count: int, batch: int, seed: int, lengths: np.ndarray | None = None):
        if count < batch:
            raise UserError(f"the training split has {count:,} samples, a batch {batch:,}; lower batch, or give more")
        self._count, self._batch, self._seed, self._lengths = count, batch, seed, lengths
        self._epoch = lru_cache(1)(self._shuffled)

    @property
    def per_epoch(self) -> int:
        """Steps of an epoch."""
        return self._count // self._batch

    def at(self, step: int) -> np.ndarray:
        """Positions of the samples of a step, counted from 0: int64 [batch]."""
        epoch, number = divmod(step, self.per_epoch)
        return self._epoch(epoch)[number]

    def _shuffled(self, epoch: int) -> np.ndarray:
        """All batches of an epoch, [per_epoch, batch]."""
        random = np.random.default_rng(derive_seed(self._seed, "epoch", epoch))
        order = random.permutation(self._count)[: self.per_epoch * self._batch]
        if self._lengths is None:
            return order.reshape(-1, self._batch)
        pools = np.split(order, range(POOL * self._batch, len(order), POOL * self._batch))
        sorted_pools = [pool[np.argsort(self._lengths[pool], kind="stable")] for pool in pools]
        return random.permutation(np.concatenate(sorted_pools).reshape(-1, self._batch))
