"""Negative log-likelihood of a text under a model, by the protocol that Transformer-XL is validated with."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from planer.data.stream import EvalBatches
from planer.models import LanguageModel
from planer.progress import progress
from planer.runtime import autocast

VALID_BATCH = 16
"""Streams of a validation, as in NVIDIA's train.py; the result hardly depends on it."""
SEGMENTS = 16
"""Segments that a text is cut into, so that networks can be compared in pairs.  Neighbours must not depend on one
another: on the demo's test text, differences of two networks correlate by 0.4 between neighbours of 64 segments, which
makes an interval too narrow by a third, and by -0.15 between neighbours of 16."""
SEGMENT_TOKENS = 64
"""A short text has fewer segments, of at least this many tokens each."""


@torch.inference_mode()
def segment_nll(
    model: LanguageModel,
    tokens: np.ndarray,
    batch: int,
    tgt_len: int,
    mem_len: int,
    clamp_len: int = 0,
    same_length: bool = False,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    attention: str = "cached",
    description: str = "",
) -> tuple[Tensor, Tensor]:
    """Mean negative log-likelihood of every segment of a text, and the tokens scored in each.

    Returns nats per token [S] float64 and tokens [S] int64, both on the CPU and in the order of the text.  The segments
    depend on the text and on batch alone: networks are compared on the same ones (planer/paired.py).

    The text is read as ``batch`` parallel streams in calls of tgt_len tokens.  Before its first token each stream reads
    the end of the one before it, uncounted, so that every counted token has a true left context and the result
    hardly depends on batch; the first token of each stream is never a target (EvalBatches).  Mid-training validation
    (E-train) uses the lengths of training; the headline protocol adds same_length, clamp_len and a long memory.

    The memory starts empty and belongs to this call.  A model in training is put back there.  With a description,
    progress is shown under it.
    """
    batches = EvalBatches(tokens, batch, tgt_len, mem_len)
    was_training = model.training
    model.eval()
    scored, memory = [], None
    try:
        for inputs, targets, counted in progress(batches, description) if description else batches:
            with autocast(device, dtype):
                nll, memory = model(
                    inputs.to(device),
                    memory,
                    mem_len=mem_len,
                    same_length=same_length,
                    clamp_len=clamp_len,
                    attention=attention,
                    score=partial(model.nll, targets=targets.to(device)) if counted else None,
                )
            if counted:
                scored.append(nll)
    finally:
        model.train(was_training)
    in_order = torch.cat(scored, dim=1).flatten().cpu().double()
    parts = in_order.tensor_split(max(1, min(SEGMENTS, len(in_order) // SEGMENT_TOKENS)))
    return torch.stack([part.mean() for part in parts]), torch.tensor([len(part) for part in parts])


def mean_nll(model: LanguageModel, tokens: np.ndarray, *lengths, **options) -> tuple[float, int]:
    """Mean negative log-likelihood in nats per token, and the number of tokens that it is the mean of.

    The mean over the segments of ``segment_nll``, which takes the same arguments.
    """
    return mean_of(*segment_nll(model, tokens, *lengths, **options))


def mean_of(nll: Tensor, counts: Tensor) -> tuple[float, int]:
    """Mean nats per token over segments, weighted by their tokens, and the number of tokens."""
    total = int(counts.sum())
    return (nll * counts).sum().item() / total, total
