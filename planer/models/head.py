"""The module of a head: its weights, beside those of the embedding that it is tied with.

Letters in shapes: N rows, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from planer.heads import HeadSpec
from planer.kernels.multiplicative import multiplicative

LOGITS_AT_ONCE = 2**26
"""Logits alive at a time in a head: 256 MiB in single precision."""


class Head(nn.Module):
    """What ``spec`` computes, with weights of its own and those of an embedding."""

    def __init__(self, spec: HeadSpec, embedding: nn.Module, vocab_size: int, d_model: int):
        super().__init__()
        self.spec, self.initial = spec, spec.initial()
        self._embedding = (embedding,)  # in a tuple it is no submodule, so that its weights are stored once
        for name, shape in spec.tensors(vocab_size, d_model).items():
            setattr(self, name, nn.Parameter(torch.zeros(shape)))

    @property
    def embedding(self) -> nn.Module:
        """The network's embedding."""
        return self._embedding[0]

    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Negative log-likelihood of targets [...], in nats: [..., D] to [...], single precision."""
        return self.spec.loss(self, hidden.flatten(0, -2), targets.flatten()).view_as(targets)

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., D] to [..., V], in at least single precision: their softmax is the distribution of the next token."""
        return self.spec.logits(self, hidden)

    def log_probs(self, hidden: Tensor) -> Tensor:
        """[..., D] to log-probabilities of the next token [..., V], in at least single precision."""
        return self.logits(hidden).log_softmax(-1)

    @staticmethod
    def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """x W^T + b, in at least single precision."""
        return _at_least_single(F.linear(x, weight, bias))

    @staticmethod
    def project(x: Tensor, projection: Tensor) -> Tensor:
        """x P: [..., D] to [..., w]."""
        return x @ projection

    @staticmethod
    def join(first: Tensor, second: Tensor) -> Tensor:
        """The rows of both."""
        return torch.cat((first, second))

    @staticmethod
    def multiplicative(x: Tensor, scales: Tensor, shared: Tensor, bias: Tensor) -> Tensor:
        """See planer/kernels/multiplicative.py; in at least single precision."""
        return _at_least_single(multiplicative(x, scales, shared, bias))

    @staticmethod
    def by_rows(width: int, score: Callable[..., Tensor], *rows: Tensor) -> Tensor:
        """score(*rows), from rows [N, ...] to [..., N], for a score that makes logits [N, width] of its rows.

        Done in chunks, recomputed in the backward pass, so that no more than LOGITS_AT_ONCE logits exist at a time
        whatever the vocabulary.
        """
        size = max(LOGITS_AT_ONCE // width, 1)
        if rows[0].shape[0] <= size:
            return score(*rows)
        chunks = [
            checkpoint(score, *chunk, use_reentrant=False, preserve_rng_state=False)
            for chunk in zip(*(part.split(size) for part in rows), strict=True)
        ]
        return torch.cat(chunks, dim=-1)


def _at_least_single(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
