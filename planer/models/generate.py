"""Text from a network, token by token.

A network is read as it is evaluated: every token sees itself and the mem_len tokens before it (``same_length``), and
distances beyond clamp_len count as it.  Keys and values of the memory are kept, so that each new token is one call.
Prompts are read in the network's precision, whatever the weights of the tokens after them.

Letters in shapes: V vocabulary.
"""

from __future__ import annotations

import operator
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Annotated

import torch
from torch import Tensor

from planer.errors import UserError
from planer.models.decoder import start
from planer.models.transformer import LanguageModel, Output
from planer.parsing import Range, show, with_defaults

SEGMENT = 512
"""Tokens of a prompt that are read in one call; the result hardly depends on it."""


@dataclass(frozen=True)
class Sampling:
    """How many tokens are written, and how each is chosen."""

    tokens: Annotated[int, Range(1, 1_000_000)] = 128
    """Tokens that follow the prompt."""
    temperature: Annotated[float, Range(0, 1_000)] = 0.0
    """Divides the logits; 0 takes the most probable token every time."""
    top_k: Annotated[int, Range(0, 2**31)] = 0
    """Sample from this many of the most probable tokens; 0: from all."""
    top_p: Annotated[float, Range(0, 1, above=True)] = 1.0
    """Sample from the fewest of the most probable tokens whose probabilities sum to this (nucleus sampling, arXiv
    1904.09751); 1: from all."""
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    """Of the random choices."""

    @classmethod
    def of(cls, **options: float) -> Sampling:
        """With the defaults for what is not given.  Raises UserError for an unknown option and numbers out of range."""
        return with_defaults(cls, options)

    def choose(self, log_probs: Tensor, generator: torch.Generator) -> int:
        """The next token from log-probabilities [V].  Samples on the CPU: a seed gives the same choices everywhere."""
        if self.temperature == 0:
            return int(log_probs.argmax())
        log_probs = log_probs.double().cpu()
        scores = ((log_probs - log_probs.max()) / self.temperature).float()  # the largest is 0 at any temperature
        kept = scores.topk(min(self.top_k or len(scores), len(scores)))
        probabilities = kept.values.softmax(-1)
        if self.top_p < 1:
            before = probabilities.cumsum(-1) - probabilities
            probabilities[1:][before[1:] >= self.top_p] = 0  # never the first: in single precision, top_p may be 0
        return int(kept.indices[torch.multinomial(probabilities, 1, generator=generator)])


def token_ids(prompt: Sequence[int], vocab_size: int) -> list[int]:
    """The ids of a prompt as plain numbers.

    Raises UserError when the prompt is empty or holds anything but ids of the vocabulary.
    """
    try:
        ids = [operator.index(token) for token in prompt]
    except TypeError:
        raise UserError(f"the prompt {show(prompt)} is no list of token ids; give whole numbers") from None
    if not ids:
        raise UserError("the prompt is empty; give at least one token")
    if wrong := [token for token in ids if not 0 <= token < vocab_size]:
        raise UserError(f"the prompt holds the id {show(wrong[0])}; allowed: 0 to {vocab_size - 1:,}")
    return ids


def generate(
    model: LanguageModel,
    prompt: Sequence[int],
    sampling: Sampling,
    *,
    mem_len: int,
    clamp_len: int = 0,
    weights: str = "float32",
) -> Iterator[int]:
    """Yield the tokens that follow a prompt; otherwise as ``generate_batch``."""
    options = {"mem_len": mem_len, "clamp_len": clamp_len, "weights": weights}
    return chain.from_iterable(generate_batch(model, [prompt], sampling, **options))


@torch.inference_mode()
def generate_batch(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    mem_len: int,
    clamp_len: int = 0,
    weights: str = "float32",
) -> Iterator[list[int]]:
    """Yield the next token of every prompt: those that each gets alone; and an empty list between segments of a prompt.

    prompts: ids, of any lengths.  mem_len: tokens that a token sees before itself.  clamp_len: 0 switches it off.
    weights: what the decode engine stores weights as (``planer.models.decoder.decoder_of``).
    Raises UserError as ``token_ids`` and ``decoder_of``, ValueError when the model is in training.
    """
    all_ids = [token_ids(prompt, model.architecture.vocab_size) for prompt in prompts]
    generators = [torch.Generator().manual_seed(sampling.seed) for _ in all_ids]
    device = next(model.parameters()).device
    reading = {"mem_len": mem_len, "clamp_len": clamp_len}
    outputs = []
    for ids in all_ids:
        outputs.append((yield from _read(model, torch.tensor([ids], device=device), **reading)))
    log_probs = [model.log_probs(output.hidden[0, -1]) for output in outputs]
    tokens = [sampling.choose(row, generator) for row, generator in zip(log_probs, generators, strict=True)]
    yield tokens
    if sampling.tokens > 1:
        read = start(model, [output.state for output in outputs], sampling.tokens - 1, **reading, weights=weights)
        for _ in range(sampling.tokens - 1):
            log_probs = read(torch.tensor(tokens, device=device))
            tokens = [sampling.choose(row, generator) for row, generator in zip(log_probs, generators, strict=True)]
            yield tokens


def _read(model: LanguageModel, ids: Tensor, **reading: int) -> Generator[list[int], None, Output]:
    """Read a prompt [1, T]; yield an empty list between segments, return what the last one gives."""
    output = None
    for segment in ids.split(SEGMENT, dim=1):
        if output is not None:
            yield []
        output = model(segment, output and output.state, **reading, same_length=True, attention="cached")
    return output
