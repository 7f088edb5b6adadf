"""The value of every option at every position, measured on a trained supernet.

The score of option i at position b is the fall of the validation loss when the incumbent network, a path through the
supernet, gets option i at position b (replace-one-block scoring of NVIDIA's Puzzle, arXiv 2411.19146).  Architecture
weights do not measure this: the latency loss changes them too, and a large weight does not mean an important operation
(DARTS-PT, arXiv 2108.04392).

Letters in shapes: B sequences, T tokens, D model width, P positions, N options.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from planer.config import SearchConfig
from planer.config.lengths import VALID_BATCH
from planer.data.stream import EvalBatches
from planer.progress import progress
from planer.runtime import Runtime
from planer.search.space import PathLoss
from planer.search.supernet import Supernet


class SupernetLoss:
    """The loss of paths through a supernet on one text, a PathLoss.

    Consecutive paths often start with the same options, since one position after the other is switched.  The hidden
    states after these shared options are kept, so that only the later blocks run: about half of them over a round of
    scores.  The supernet must not change between calls.
    """

    def __init__(self, supernet: Supernet, tokens: np.ndarray, config: SearchConfig, runtime: Runtime):
        """tokens: the text [n], read in segments as in the search.  Puts the supernet into evaluation."""
        self._supernet, self._mem_len, self._runtime = supernet.eval(), config.mem_len, runtime
        self._batches = EvalBatches(tokens, VALID_BATCH, config.tgt_len, config.mem_len)
        self._last: list[int] = []
        self._kept: list[int] = []
        self._hidden: list[Tensor] = []
        """Of every segment [B, T, D], after the blocks of ``_kept``."""

    @torch.inference_mode()
    def __call__(self, path: Sequence[int]) -> float:
        path = list(path)
        shared = _common(path, self._last)
        self._last = path
        self._supernet.choose(path)
        device = self._runtime.device
        with self._runtime.autocast():
            if not self._hidden or path[: len(self._kept)] != self._kept:
                self._kept = []
                self._hidden = [self._supernet.embed(inputs.to(device)) for inputs, _, _ in self._batches]
            if shared > len(self._kept):
                self._hidden = list(self._behind(slice(len(self._kept), shared)))
                self._kept = path[:shared]
            total = torch.zeros((), dtype=torch.float64, device=device)
            rest = self._behind(slice(len(self._kept), None))
            for (_, targets, counted), hidden in zip(self._batches, rest, strict=True):
                if counted:
                    normed = self._supernet.final_norm(hidden)
                    total += self._supernet.nll(normed, targets.to(device)).sum(dtype=torch.float64)
        return total.item() / self._batches.counted_targets

    def _behind(self, places: slice) -> Iterator[Tensor]:
        """Hidden states of every segment after the blocks at these positions, which follow the kept ones."""
        state = None
        for hidden in self._hidden:
            # Super blocks remember hidden states, so that any option can follow any other.
            hidden, state, _ = self._supernet.run_blocks(hidden, state, places, mem_len=self._mem_len)
            yield hidden


def _common(path: Sequence[int], other: Sequence[int]) -> int:
    """Number of options that two paths share at their start."""
    pairs = enumerate(zip(path, other, strict=False))
    return next((b for b, (first, second) in pairs if first != second), min(len(path), len(other)))


def replace_one_scores(loss: PathLoss, incumbent: Sequence[int], options: int, description: str = "") -> np.ndarray:
    """Scores [P, N] in nats per token, higher is better; 0 where the incumbent keeps its option.

    Every network is scored on the same text, so that the noise of the text cancels.
    """
    scores = np.zeros((len(incumbent), options))
    reference = loss(incumbent)
    switches = [(b, i) for b, kept in enumerate(incumbent) for i in range(options) if i != kept]
    for b, i in progress(switches, description or "replace-one scores"):
        scores[b, i] = reference - loss([*incumbent[:b], i, *incumbent[b + 1 :]])
    return scores
