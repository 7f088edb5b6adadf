"""Negative log-likelihood of a text under a model, by the protocol that Transformer-XL is validated with."""

from __future__ import annotations

import numpy as np
import torch

from planer.data.stream import EvalBatches
from planer.model import LanguageModel
from planer.progress import progress
from planer.runtime import autocast

VALID_BATCH = 16
"""Streams of a validation, as in NVIDIA's train.py; the result hardly depends on it."""


@torch.inference_mode()
def mean_nll(
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
) -> tuple[float, int]:
    """Mean negative log-likelihood in nats per token, and the number of tokens that it is the mean of.

    The text is read as ``batch`` parallel streams in segments of tgt_len.  Before its first token each stream reads
    the end of the one before it, uncounted, so that every counted token has a true left context and the result
    hardly depends on batch; the first token of each stream is never a target (EvalBatches).  Mid-training validation
    (E-train) uses the lengths of training; the headline protocol adds same_length, clamp_len and a long memory.

    The memory starts empty and belongs to this call.  A model in training is put back there.  With a description,
    progress is shown under it.
    """
    batches = EvalBatches(tokens, batch, tgt_len, mem_len)
    was_training = model.training
    model.eval()
    total, counted_tokens, memory = torch.zeros((), dtype=torch.float64, device=device), 0, None
    try:
        for inputs, targets, counted in progress(batches, description) if description else batches:
            with autocast(device, dtype):
                hidden, memory = model(
                    inputs.to(device),
                    memory,
                    mem_len=mem_len,
                    same_length=same_length,
                    clamp_len=clamp_len,
                    attention=attention,
                )
                if counted:
                    total += model.nll(hidden, targets.to(device)).sum(dtype=torch.float64)
                    counted_tokens += targets.numel()
    finally:
        model.train(was_training)
    return total.item() / counted_tokens, counted_tokens
