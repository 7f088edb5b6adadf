"""One token after another through a network: the decode engine.

On a CPU, in single precision and with a C++ compiler, blocks and head run as operators with packed weights
(planer/models/steps.py), and keys and values stay where they are.  Elsewhere, PyTorch reads each token as a segment.

Letters in shapes: B sequences, L distances, D model width, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from planer.kernels.cpp import build
from planer.kernels.sparse_decode import panels
from planer.models.head import Head
from planer.models.positions import sinusoids
from planer.models.steps import STEPS
from planer.models.transformer import LanguageModel

Reader = Callable[[Tensor], Tensor]
"""Reads the next token of every sequence [B] and gives log-probabilities of the one after it [B, V]."""


def start(model: LanguageModel, state: list, tokens: int, mem_len: int, clamp_len: int) -> Reader:
    """Continue sequences, at most by this many tokens.

    state: what the network remembers of their prompts, keys and values (``cached`` attention).
    mem_len: tokens that a token sees before itself.  clamp_len: distances beyond it count as it; 0 switches this off.
    """
    decoder = decoder_of(model)
    if decoder is None:
        return Segments(model, state, mem_len, clamp_len).read
    return Sequences(decoder, state, tokens, mem_len, clamp_len).read


def decoder_of(model: LanguageModel) -> Decoder | None:
    """The network's decoder, made anew when weights have changed; None where PyTorch reads the tokens."""
    weights = list(model.parameters())
    if any(weight.device.type != "cpu" or weight.dtype != torch.float32 for weight in weights):
        return None
    if model.training or not build.available():
        return None
    written = tuple((w.data_ptr(), 0 if w.is_inference() else w._version) for w in weights)
    if model.decoder is None or model.decoder.written != written:
        model.decoder = Decoder(model, written)
    return model.decoder


class Decoder:
    """A network with its weights laid out for decoding.  All its sequences share them."""

    def __init__(self, model: LanguageModel, written: tuple):
        """written: addresses and versions of the weights."""
        self.model, self.written = model, written
        places = zip(model.architecture.blocks, model.blocks, strict=True)
        self.steps = [STEPS[spec.kind](block) if spec.kind in STEPS else None for spec, block in places]
        self._head = _Head(model.head)
        self._positions: dict[int, Tensor] = {}

    def __reduce__(self) -> tuple:
        """None: a copy of the network lays out weights of its own."""
        return type(None), ()

    def positions(self, length: int, made: int, clamp_len: int) -> Tensor:
        """Sinusoids of the distances 0, 1, ..., at least ``length`` of them: [L, D].

        The same tensor as long as it suffices; else one of ``made`` distances.  Attention blocks project it once.
        """
        table = self._positions.get(clamp_len)
        if table is None or len(table) < length:
            distance = torch.arange(made)
            clamped = distance.clamp(max=clamp_len) if clamp_len else distance
            table = self._positions[clamp_len] = sinusoids(clamped, self.model.architecture.d_model)
        return table

    def log_probs(self, hidden: Tensor) -> Tensor:
        """[B, D] to [B, V]."""
        return self._head.log_probs(hidden)


class Sequences:
    """Sequences that a decoder continues, with their caches."""

    def __init__(self, decoder: Decoder, state: list, tokens: int, mem_len: int, clamp_len: int):
        """See ``start``."""
        self._decoder = decoder
        self._reading = {"mem_len": mem_len, "clamp_len": clamp_len, "same_length": True, "attention": "cached"}
        remembered = max((entry[0].shape[2] for entry in state if entry is not None), default=0)
        length = min(mem_len + 1, remembered + tokens)
        positions = decoder.positions(length, min(mem_len + 1, 2 * length), clamp_len)
        self._path: Iterable[int] = range(len(decoder.steps))
        self._caches = [
            step.start(entry, positions, length) if step else entry
            for step, entry in zip(decoder.steps, state, strict=True)
        ]

    def through(self, places: Iterable[int]) -> Sequences:
        """The same sequences in a network of the blocks at these places, in this order.  They share their caches."""
        other = copy.copy(self)
        other._path = tuple(places)
        return other

    def read(self, tokens: Tensor) -> Tensor:
        """See ``Reader``."""
        return self._decoder.log_probs(self.hidden(tokens))

    def hidden(self, tokens: Tensor) -> Tensor:
        """States behind the last block [B, D], after reading the next token of every sequence [B]."""
        model, caches = self._decoder.model, self._caches
        x = model.embed(tokens)
        for place in self._path:
            if step := self._decoder.steps[place]:
                x = step(x, caches[place])
            else:
                here = slice(place, place + 1)
                y, (caches[place],), _ = model.run_blocks(x[:, None], [caches[place]], here, **self._reading)
                x = y[:, 0]
        return model.final_norm(x)


class Segments:
    """Sequences that PyTorch continues."""

    def __init__(self, model: LanguageModel, state: list, mem_len: int, clamp_len: int):
        self._model, self._state = model, state
        self._reading = {"mem_len": mem_len, "clamp_len": clamp_len, "same_length": True, "attention": "cached"}

    def read(self, tokens: Tensor) -> Tensor:
        output = self._model(tokens[:, None], self._state, **self._reading)
        self._state = output.state
        return self._model.log_probs(output.hidden[:, -1])


class _Head:
    """A head whose products are operators, with its weights laid out once."""

    def __init__(self, head: Head):
        self._head = head
        self._joined: dict[tuple[int, int], Tensor] = {}
        if hasattr(head, "scales"):
            self._packed = head.scales.detach().t().contiguous(), panels(head.shared)

    def __getattr__(self, name: str) -> Tensor:
        return getattr(self._head, name)

    def log_probs(self, hidden: Tensor) -> Tensor:
        return self._head.spec.logits(self, hidden).log_softmax(-1)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.ops.planer_cpp.decode_linear(x, weight, bias)

    def join(self, first: Tensor, second: Tensor) -> Tensor:
        key = first.data_ptr(), second.data_ptr()
        if key not in self._joined:
            self._joined[key] = torch.cat((first, second))
        return self._joined[key]

    def multiplicative(self, x: Tensor, scales: Tensor, shared: Tensor, bias: Tensor) -> Tensor:
        return torch.ops.planer_cpp.decode_multiplicative(x, *self._packed, bias)
