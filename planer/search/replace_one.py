"""How much every option is worth at every position, read off a trained supernet.

The score of option i at position b is the fall of the validation loss when the incumbent network, a path through the
supernet, gets option i at position b and keeps all else (replace-one-block scoring of NVIDIA's Puzzle,
arXiv 2411.19146).  Architecture weights are no such measure: they move with the latency loss too, and their strength
is not that of the operation (DARTS-PT, arXiv 2108.04392).

Letters in shapes: P positions, N options.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from planer.config import SearchConfig
from planer.progress import progress
from planer.search.supernet import Supernet
from planer.training.validate import VALID_BATCH, mean_nll

PathLoss = Callable[[Sequence[int]], float]
"""From a path, one option per position, to its loss in nats per token; the same path gives the same number."""


def path_loss(
    supernet: Supernet, tokens: np.ndarray, config: SearchConfig, device: torch.device, dtype: torch.dtype
) -> PathLoss:
    """The loss of paths through a supernet on one text, tokens [n], read in segments as in the search."""

    def loss(path: Sequence[int]) -> float:
        supernet.choose(path)
        lengths = (VALID_BATCH, config.tgt_len, config.mem_len)
        # Super blocks remember hidden states, so that any option can follow any other.
        return mean_nll(supernet, tokens, *lengths, device=device, dtype=dtype, attention="recompute")[0]

    return loss


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
