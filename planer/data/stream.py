"""Batches from one long text: contiguous streams, read segment by segment (Transformer-XL, arXiv 1901.02860).

N tokens become B streams of n = N // B tokens; the last N - nB are dropped.  Stream b holds tokens bn to (b+1)n - 1,
and the memory of a model follows each stream from segment to segment.  Arrays may be memory maps: only the tokens of
a batch are read.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from planer.config.lengths import evaluation_tokens, segments_per_epoch, training_tokens
from planer.errors import UserError


class StreamBatches:
    """Training batches with random access by step, so that a resumed run needs no iterator state.

    An epoch's last segment may be shorter than tgt_len and is not padded.  The memory is not reset between epochs.
    """

    def __init__(self, tokens: np.ndarray, batch: int, tgt_len: int) -> None:
        self._streams = _split(tokens, batch, training_tokens(batch))
        self.tgt_len = tgt_len

    @property
    def segments_per_epoch(self) -> int:
        """Steps in one pass over the corpus."""
        return segments_per_epoch(self._streams.size, len(self._streams), self.tgt_len)

    @property
    def targets_per_stream(self) -> int:
        """Tokens predicted per stream and epoch: all but the first."""
        return self._streams.shape[1] - 1

    def batch_at(self, step: int) -> tuple[Tensor, Tensor]:
        """Input and target of a global step (0-based, across epochs), each [B, s] int64 with s <= tgt_len."""
        begin = step % self.segments_per_epoch * self.tgt_len
        end = min(begin + self.tgt_len, self.targets_per_stream)
        return _tensor(self._streams[:, begin:end]), _tensor(self._streams[:, begin + 1 : end + 1])


class EvalBatches:
    """Evaluation segments: every stream starts with the text before it in memory.

    ceil(mem_len / tgt_len) warm-up segments come first; their losses do not count.  They are the end of the previous
    stream (for stream 0 the end of the last one, as in NVIDIA's loader), so that the result hardly depends on the
    batch.  All tokens but the first of each stream are scored.
    """

    def __init__(self, tokens: np.ndarray, batch: int, tgt_len: int, mem_len: int) -> None:
        self.warmup_segments = -(-mem_len // tgt_len)
        self._streams = _split(tokens, batch, evaluation_tokens(batch, tgt_len, mem_len))
        self.tgt_len = tgt_len

    @property
    def counted_targets(self) -> int:
        """Tokens scored in one pass."""
        batch, length = self._streams.shape
        return batch * (length - 1)

    def __len__(self) -> int:
        return self.warmup_segments + -(-(self._streams.shape[1] - 1) // self.tgt_len)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, bool]]:
        """Input and target [B, s] int64, and whether this segment's losses count."""
        batch, length = self._streams.shape
        text = self._streams.reshape(-1)
        starts = np.arange(batch)[:, None] * length
        for begin in range(-self.warmup_segments * self.tgt_len, length - 1, self.tgt_len):
            end = min(begin + self.tgt_len, length - 1)
            window = text[(starts + np.arange(begin, end + 1)) % text.size]
            yield _tensor(window[:, :-1]), _tensor(window[:, 1:]), begin >= 0


def _split(tokens: np.ndarray, batch: int, needed: int) -> np.ndarray:
    """View tokens as [B, n].  Raises UserError when there are fewer than needed."""
    if tokens.ndim != 1:
        raise ValueError(f"tokens have shape {tokens.shape}; a stream is one-dimensional")
    if len(tokens) < needed:
        raise UserError(
            f"the text has {len(tokens):,} tokens, a batch of {batch:,} needs at least {needed:,}; "
            "lower batch or mem_len, or choose a larger dataset"
        )
    length = len(tokens) // batch
    return np.asarray(tokens)[: batch * length].reshape(batch, length)


def _tensor(tokens: np.ndarray) -> Tensor:
    return torch.from_numpy(tokens.astype(np.int64, order="C"))
