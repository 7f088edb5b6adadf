"""Adaptive softmax (Grave et al., arXiv 1609.04309): frequent words in a shortlist, rare words in clusters.

The vocabulary is sorted by frequency and cut at ``cutoffs`` into a shortlist, cluster 0, and C further clusters.

    p(word of cluster 0) = softmax(shortlist)[word]
    p(word of cluster c) = softmax(shortlist)[column of c] * softmax(cluster c)[word - start of c]

The shortlist has one more column a cluster, that of cluster 1 last, as Transformer-XL's code has it.  A token costs the
shortlist's products, and those of one cluster where it is rare.

The weights are those of the embedding (tied).  div_val 1: one table.  div_val k: cluster c has a table of width
D / k^c and a projection to D, which the head uses too; only the shortlist's projection is the head's own.

Letters in shapes: N rows, D model width, V vocabulary, C clusters beside the shortlist.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, ClassVar

from planer.errors import UserError
from planer.heads.head import Cluster, HeadSpec
from planer.parsing import Items, Range, show

if TYPE_CHECKING:
    from torch import Tensor, nn


FREQUENT = 6_000
"""Words up to this rank follow Zipf's law: word r has a share proportional to 1 / r."""
RARE_EXPONENT = 1.64
"""Beyond, shares fall as r^-1.64.  English has these two regimes (Ferrer i Cancho & Sole 2001).  Here the exponent is
the one that gives the last of WikiText-103's 267,735 words its 3 occurrences in 103 million tokens."""


@dataclass(frozen=True)
class AdaptiveSoftmax(HeadSpec):
    cutoffs: Annotated[tuple[Annotated[int, Range(1, 2**24)], ...], Items(1, 10)]
    """First words of the clusters after the shortlist."""
    div_val: Annotated[int, Range(1, 64)]
    """Each cluster's embedding is this many times narrower than that of the one before."""
    kind: ClassVar[str] = "adaptive_softmax"
    waits_for_device: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if list(self.cutoffs) != sorted(self.cutoffs):
            raise UserError(f"cutoffs: {show(list(self.cutoffs))} must be in rising order")

    def check(self, vocab_size: int, d_model: int) -> None:
        if self.cutoffs[-1] >= vocab_size:
            raise UserError(
                f"model.head.cutoffs: {self.cutoffs[-1]:,} must be below the number of symbols, {vocab_size:,}"
            )
        if self.div_val ** len(self.cutoffs) > d_model:
            raise UserError(
                f"model.head.div_val: {self.div_val} leaves the last of {len(self.cutoffs) + 1} clusters no width; "
                f"d_model is {d_model}"
            )

    def clusters(self, vocab_size: int) -> tuple[Cluster, ...]:
        total = _mass(vocab_size)
        return tuple(
            Cluster(start, stop, (_mass(stop) - _mass(start)) / total)
            for start, stop in pairwise((0, *self.cutoffs, vocab_size))
        )

    def _widths(self, d_model: int) -> list[int]:
        """Embedding widths of the clusters."""
        return [d_model // self.div_val**number for number in range(len(self.cutoffs) + 1)]

    def tables(self, vocab_size: int, d_model: int) -> tuple[tuple[int, int], ...]:
        if self.div_val == 1:
            return ((vocab_size, d_model),)
        sizes = [cluster.size for cluster in self.clusters(vocab_size)]
        return tuple(zip(sizes, self._widths(d_model), strict=True))

    def tensors(self, vocab_size: int, d_model: int) -> dict[str, tuple[int, ...]]:
        count = len(self.cutoffs)
        own = {"bias": (vocab_size,), "cluster_weight": (count, d_model), "cluster_bias": (count,)}
        return own | ({"projection": (d_model, d_model)} if self.div_val > 1 else {})

    def flops(self, vocab_size: int, d_model: int) -> float:
        """See HeadSpec.  A cluster counts with the share of tokens that it has in a text."""
        widths, projected = self._widths(d_model), self.div_val > 1
        total = 2 * d_model * sum(widths) if projected else 0  # the embedding projects every token from every table
        for number, cluster in enumerate(self.clusters(vocab_size)):
            columns = cluster.size if number else cluster.size + len(self.cutoffs)
            products = 2 * widths[number] * columns + (2 * d_model * widths[number] if projected else 0)
            total += products * (cluster.share if number else 1)
        return total

    def logits_per_row(self, vocab_size: int) -> int:
        return max(cluster.size for cluster in self.clusters(vocab_size)) + len(self.cutoffs)

    def loss(self, head: nn.Module, rows: Tensor, words: Tensor) -> Tensor:
        """See HeadSpec.  In the order of the rows."""
        import torch

        bounds = (0, *self.cutoffs, head.bias.numel())
        cluster = torch.bucketize(words, words.new_tensor(self.cutoffs), right=True)
        columns, score = self.cutoffs[0] + len(self.cutoffs), partial(self._cluster_nll, head)
        nll = head.by_rows(columns, partial(score, 0), rows, torch.where(cluster == 0, words, columns - cluster))
        for number in range(1, len(bounds) - 1):  # clusters without words too: their weights get zeros as gradients
            start, stop = bounds[number : number + 2]
            chosen = (cluster == number).nonzero().squeeze(1)
            inside = (rows.index_select(0, chosen), words[chosen] - start)
            rare = head.by_rows(stop - start, partial(score, number), *inside)
            nll = nll.index_add(0, chosen, rare)
        return nll

    def logits(self, head: nn.Module, hidden: Tensor) -> Tensor:
        """See HeadSpec.  They are log-probabilities."""
        import torch

        shortlist = self._cluster_logits(head, 0, hidden).log_softmax(-1)
        parts = [shortlist[..., : self.cutoffs[0]]]
        for number in range(1, len(self.cutoffs) + 1):
            inside = self._cluster_logits(head, number, hidden).log_softmax(-1)
            parts.append(shortlist[..., -number, None] + inside)
        return torch.cat(parts, dim=-1)

    def _cluster_nll(self, head: nn.Module, number: int, rows: Tensor, columns: Tensor) -> Tensor:
        """Negative log-likelihood of columns [N] among the logits of a cluster."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(self._cluster_logits(head, number, rows), columns, reduction="none")

    def _cluster_logits(self, head: nn.Module, number: int, hidden: Tensor) -> Tensor:
        """Logits of a cluster's words, and in the shortlist those of the clusters behind them: [..., D] to [..., n]."""
        start, stop = (0, *self.cutoffs, head.bias.numel())[number : number + 2]
        embedding, bias = head.embedding, head.bias[start:stop]
        if self.div_val == 1:
            weight = embedding.weight[start:stop]
        else:
            weight = embedding.table(number)
            hidden = head.project(hidden, embedding.projection(number) if number else head.projection)
        if number == 0:
            weight, bias = head.join(weight, head.cluster_weight), head.join(bias, head.cluster_bias)
        return head.linear(hidden, weight, bias)


def _mass(rank: int) -> float:
    """Sum of the shares of the words up to a rank, over that of the first word."""
    frequent = math.log(max(min(rank, FREQUENT), 1)) + 0.577 if rank else 0.0  # sum of 1 / r, to a few percent
    rare = 1 - (max(rank, FREQUENT) / FREQUENT) ** (1 - RARE_EXPONENT)
    return frequent + rare / (RARE_EXPONENT - 1)
