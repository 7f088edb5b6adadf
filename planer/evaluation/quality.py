"""How well a network predicts a text, by the two protocols of Transformer-XL (NVIDIA's train.py and eval.py).

E-final, the headline, gives every token the same long context (``same_length``) and treats far distances as one
(``clamp_len``); its result does not depend on tgt_len.  E-train reads segments and memory as they were in training.
"""

from __future__ import annotations

import numpy as np

from planer.config import DataConfig, EvaluateConfig, TrainingConfig
from planer.config.corpora import CORPORA
from planer.conversion.thresholds import final_protocol
from planer.models import LanguageModel
from planer.runtime import Runtime
from planer.tasks.metrics import of_text
from planer.tasks.nll import Protocol, mean_of, segment_nll


def unit_of(data: DataConfig) -> str:
    """``bpc`` for text read byte by byte or letter by letter, ``ppl`` for words and subwords."""
    by_bytes = CORPORA[data.dataset].unit == "byte" if data.dataset else data.tokenizer == "bytes"
    return "bpc" if by_bytes else "ppl"


def protocols(evaluate: EvaluateConfig, training: TrainingConfig) -> dict[str, Protocol]:
    """E-final (``final``) and E-train (``train``)."""
    return {
        "final": final_protocol(evaluate),
        "train": Protocol(evaluate.batch, training.tgt_len, training.mem_len),
    }


def quality(model: LanguageModel, tokens: np.ndarray, protocol: Protocol, runtime: Runtime, **options) -> dict:
    """Score a text, tokens [N].  options: description and watch of ``segment_nll``.

    Returns what ``from_nll`` does; scored are all tokens but the first of each stream.  Also ``segments``: nll and
    tokens of every segment of the text (``segment_nll``).
    """
    nll, counts = segment_nll(model, tokens, protocol, runtime, **options)
    return from_nll(*mean_of(nll, counts)) | {"segments": {"nll": nll.tolist(), "tokens": counts.tolist()}}


def from_nll(nll: float, tokens: int) -> dict[str, float | int]:
    """A score in all units: nll (nats per token), bpc (bits per token), ppl, and the number of tokens scored."""
    return of_text(("nll", "bpc", "ppl"), nll) | {"tokens": tokens}


def in_unit(score: dict, unit: str) -> dict[str, float | int]:
    """A score with its nll in one other unit only: bits mean nothing for words, perplexity little for bytes.

    Without its segments.
    """
    return {"nll": score["nll"], unit: score[unit], "tokens": score["tokens"]}
