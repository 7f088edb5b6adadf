"""The splits of a corpus in memory, or mapped into it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Texts:
    """Token numbers below vocab_size, each split [n]; None for a split that a job does not read."""

    vocab_size: int
    train: np.ndarray | None = None
    valid: np.ndarray | None = None
    test: np.ndarray | None = None
