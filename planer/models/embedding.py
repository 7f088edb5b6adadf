"""From token ids to vectors, times sqrt(D).

Letters in shapes: D model width, w width of a table.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Embedding(nn.Embedding):
    """One table as wide as the model."""

    def forward(self, tokens: Tensor) -> Tensor:
        """[...] int64 to [..., D]."""
        return super().forward(tokens) * math.sqrt(self.embedding_dim)


class AdaptiveEmbedding(nn.Module):
    """Tables of different widths for consecutive parts of the vocabulary, each with a projection to D.

    Every token is looked up and projected in all tables, so that the work does not depend on the tokens: the narrow
    tables add a third to the first one's projection where each is four times narrower than the one before.
    """

    def __init__(self, tables: tuple[tuple[int, int], ...], d_model: int):
        """tables: (words, width) of each."""
        super().__init__()
        self.d_model = d_model
        self.starts = [0, *accumulate(words for words, _ in tables)]
        for number, (words, width) in enumerate(tables):
            setattr(self, f"table_{number}", nn.Parameter(torch.zeros(words, width)))
            setattr(self, f"projection_{number}", nn.Parameter(torch.zeros(d_model, width)))

    def table(self, number: int) -> Tensor:
        """[words, w]."""
        return getattr(self, f"table_{number}")

    def projection(self, number: int) -> Tensor:
        """[D, w]."""
        return getattr(self, f"projection_{number}")

    def forward(self, tokens: Tensor, linear: Callable[[Tensor, Tensor], Tensor] = F.linear) -> Tensor:
        """[...] int64 to [..., D].  linear: projects rows [..., w] by [D, w]."""
        result = None
        for number, (start, stop) in enumerate(zip(self.starts, self.starts[1:], strict=False)):
            table = self.table(number)
            found = linear(F.embedding((tokens - start).clamp(0, len(table) - 1), table), self.projection(number))
            here = ((tokens >= start) & (tokens < stop))[..., None]
            result = found if result is None else torch.where(here, found, result)
        return result * math.sqrt(self.d_model)


def build_embedding(tables: tuple[tuple[int, int], ...], d_model: int) -> nn.Module:
    """The embedding of these tables (words, width)."""
    if len(tables) == 1:
        ((words, width),) = tables
        return Embedding(words, width)
    return AdaptiveEmbedding(tables, d_model)
