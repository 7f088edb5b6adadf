"""Negative log-likelihood of a text under a model, by the protocols of Transformer-XL."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from planer.blocks.block import Wants
from planer.data.stream import EvalBatches
from planer.models import LanguageModel
from planer.models.transformer import Output
from planer.progress import progress
from planer.runtime import Runtime

SEGMENTS = 16
"""Segments that a text is cut into, so that networks can be compared in pairs.  Neighbours must not depend on one
another: on the demo's test text, differences of two networks correlate by 0.4 between neighbours of 64 segments, which
makes an interval too narrow by a third, and by -0.15 between neighbours of 16."""
SEGMENT_TOKENS = 64
"""A short text has fewer segments, of at least this many tokens each."""


@dataclass(frozen=True)
class Protocol:
    """How a text is read to be scored.

    Mid-training validation (E-train) uses the lengths of training.  The headline protocol (E-final) adds same_length,
    clamp_len and a long memory.
    """

    batch: int
    """Streams read side by side."""
    tgt_len: int
    """Tokens per stream and call; with same_length it does not change the result."""
    mem_len: int
    """Remembered positions."""
    clamp_len: int = 0
    """Distances beyond it count as it; 0 switches this off."""
    same_length: bool = False
    """Every token sees exactly mem_len + 1 keys."""


class Watch:
    """Gets every output of a scoring pass, that of the uncounted context of the streams too."""

    wants: Wants = ()
    """Further outputs of blocks that it needs."""

    def __call__(self, output: Output) -> None:
        """Called once per segment."""


@torch.inference_mode()
def segment_nll(
    model: LanguageModel,
    tokens: np.ndarray,
    protocol: Protocol,
    runtime: Runtime,
    attention: str = "cached",
    description: str = "",
    watch: Watch | None = None,
) -> tuple[Tensor, Tensor]:
    """Mean negative log-likelihood of every segment of a text, and the tokens scored in each.

    Returns nats per token [S] float64 and tokens [S] int64, both on the CPU and in the order of the text.  The segments
    depend on the text and on batch alone: networks are compared on the same ones (planer/paired.py).

    Before its first token each stream reads the end of the one before it, uncounted, so that every counted token has a
    true left context and the result hardly depends on batch; the first token of each stream is never a target
    (EvalBatches).

    The memory starts empty and belongs to this call.  A model in training is put back there.  With a description,
    progress is shown under it.
    """
    batches = EvalBatches(tokens, protocol.batch, protocol.tgt_len, protocol.mem_len)
    reading = {name: getattr(protocol, name) for name in ("mem_len", "clamp_len", "same_length")}
    reading |= {"attention": attention, "wants": watch.wants if watch else ()}
    was_training = model.training
    model.eval()
    scored, state = [], None
    try:
        for inputs, targets, counted in progress(batches, description) if description else batches:
            score = partial(model.nll, targets=targets.to(runtime.device)) if counted else None
            with runtime.autocast():
                output = model(inputs.to(runtime.device), state, score, **reading)
            state = output.state
            if watch:
                watch(output)
            if counted:
                scored.append(output.score)
    finally:
        model.train(was_training)
    in_order = torch.cat(scored, dim=1).flatten().cpu().double()
    parts = in_order.tensor_split(max(1, min(SEGMENTS, len(in_order) // SEGMENT_TOKENS)))
    return torch.stack([part.mean() for part in parts]), torch.tensor([len(part) for part in parts])


def mean_nll(model: LanguageModel, tokens: np.ndarray, *how, **options) -> tuple[float, int]:
    """Mean negative log-likelihood in nats per token, and the number of tokens that it is the mean of.

    The mean over the segments of ``segment_nll``, which takes the same arguments.
    """
    return mean_of(*segment_nll(model, tokens, *how, **options))


def mean_of(nll: Tensor, counts: Tensor) -> tuple[float, int]:
    """Mean nats per token over segments, weighted by their tokens, and the number of tokens."""
    total = int(counts.sum())
    return (nll * counts).sum().item() / total, total
