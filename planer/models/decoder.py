"""One token after another through a network: the decode engine.

On a CPU, in single precision and with a C++ compiler, blocks and head run as operators with packed weights
(planer/models/steps.py), and keys and values stay where they are.  Elsewhere, PyTorch reads each token as a segment.
Sequences may be of different lengths; each gets the bits that it gets alone.

Letters in shapes: B sequences, L distances, D model width, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from planer.errors import UserError
from planer.kernels.cpp import build
from planer.kernels.sparse_decode import WEIGHTS, rows
from planer.models.embedding import AdaptiveEmbedding
from planer.models.head import Head
from planer.models.positions import PIECE, sinusoids
from planer.models.steps import STEPS, multiplicative_layer
from planer.models.transformer import LanguageModel
from planer.parsing import show

Reader = Callable[[Tensor], Tensor]
"""Reads the next token of every sequence [B] and gives log-probabilities of the one after it [B, V]."""


def start(
    model: LanguageModel, states: list[list], tokens: int, mem_len: int, clamp_len: int, weights: str = "float32"
) -> Reader:
    """Continue sequences, at most by this many tokens.

    states: what the network remembers of the prompts, keys and values (``cached`` attention): a state for each, or for
    equally many of the same length.
    mem_len: tokens that a token sees before itself.  clamp_len: distances beyond it count as it; 0 switches this off.
    weights: see ``decoder_of``.
    """
    decoder = decoder_of(model, weights)
    if decoder is None:
        return Segments(model, states, mem_len, clamp_len).read
    return Sequences(decoder, states, tokens, mem_len, clamp_len).read


def check_weights(model: LanguageModel, weights: str) -> None:
    """Raise UserError when tokens of this network cannot be read with weights stored like this."""
    if weights not in WEIGHTS:
        raise UserError(f"weights is {show(weights)}; allowed: {', '.join(WEIGHTS)}")
    if weights != "float32" and not _has_operators(model):
        raise UserError(f"weights {weights} need a CPU and a C++ compiler; leave the option out, or take float32")


def decoder_of(model: LanguageModel, weights: str = "float32") -> Decoder | None:
    """The network's decoder, made anew when weights have changed; None where PyTorch reads the tokens.

    weights: what matrices are stored as, see ``planer.kernels.sparse_decode.WEIGHTS``.  Raises UserError as
    ``check_weights``.
    """
    check_weights(model, weights)
    if model.training or not _has_operators(model):
        return None
    parameters = list(model.parameters())
    written = weights, *((w.data_ptr(), 0 if w.is_inference() else w._version) for w in parameters)
    if model.decoder is None or model.decoder.written != written:
        model.decoder = Decoder(model, written)
    return model.decoder


def _has_operators(model: LanguageModel) -> bool:
    on_cpu = all(weight.device.type == "cpu" and weight.dtype == torch.float32 for weight in model.parameters())
    return on_cpu and build.available()


class Decoder:
    """A network with its weights laid out for decoding.  All its sequences share them."""

    def __init__(self, model: LanguageModel, written: tuple):
        """written: what weights are stored as, their addresses and versions."""
        self.model, self.written, kind = model, written, written[0]
        places = zip(model.architecture.blocks, model.blocks, strict=True)
        self.steps = [STEPS[spec.kind](block, kind) if spec.kind in STEPS else None for spec, block in places]
        self._head = _Head(model.head, kind)
        self._positions: dict[int, Tensor] = {}

    def __reduce__(self) -> tuple:
        """None: a copy of the network lays out weights of its own."""
        return type(None), ()

    def positions(self, length: int, made: int, clamp_len: int) -> Tensor:
        """Sinusoids of the distances 0, 1, ..., at least ``length`` of them: [L, D].

        The same tensor as long as it suffices; else one of ``made`` distances, in whole pieces.  Attention blocks
        project it once.
        """
        table = self._positions.get(clamp_len)
        if table is None or len(table) < length:
            distance = torch.arange(-(-made // PIECE) * PIECE)
            clamped = distance.clamp(max=clamp_len) if clamp_len else distance
            pieces = [sinusoids(piece, self.model.architecture.d_model) for piece in clamped.split(PIECE)]
            table = self._positions[clamp_len] = torch.cat(pieces)
        return table

    def embed(self, tokens: Tensor) -> Tensor:
        """[B] int64 to [B, D]."""
        embedding = self.model.embedding
        return embedding(tokens, self._head.product) if isinstance(embedding, AdaptiveEmbedding) else embedding(tokens)

    def log_probs(self, hidden: Tensor) -> Tensor:
        """[B, D] to [B, V]."""
        return self._head.log_probs(hidden)


class Sequences:
    """Sequences that a decoder continues, with their caches."""

    def __init__(self, decoder: Decoder, states: list[list], tokens: int, mem_len: int, clamp_len: int):
        """See ``start``."""
        self._decoder = decoder
        self._reading = {"mem_len": mem_len, "clamp_len": clamp_len, "same_length": True, "attention": "cached"}
        seen = torch.cat([_remembered(state) for state in states])
        length = min(mem_len + 1, int(seen.max()) + tokens)
        positions = decoder.positions(length, min(mem_len + 1, 2 * length), clamp_len)
        self._path: Iterable[int] = range(len(decoder.steps))
        self._caches = [
            step.start(list(entries), seen, positions, length) if step else list(entries)
            for step, entries in zip(decoder.steps, zip(*states, strict=True), strict=True)
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
        model = self._decoder.model
        x = self._decoder.embed(tokens)
        for place in self._path:
            step = self._decoder.steps[place]
            x = step(x, self._caches[place]) if step else self._in_pytorch(x, place)
        return model.final_norm(x)

    def _in_pytorch(self, x: Tensor, place: int) -> Tensor:
        """A block without an operator, one state after another: [B, D] to [B, D]."""
        entries, outputs = self._caches[place], []
        for number, part in enumerate(x[:, None].chunk(len(entries))):
            here = slice(place, place + 1)
            y, (entries[number],), _ = self._decoder.model.run_blocks(part, [entries[number]], here, **self._reading)
            outputs.append(y[:, 0])
        return torch.cat(outputs)


def _remembered(state: list) -> Tensor:
    """Remembered tokens of the sequences of a state: [b] int64."""
    sizes = [(entry[0].shape[0], entry[0].shape[2]) for entry in state if entry is not None]
    count, length = max(sizes, default=(1, 0), key=lambda size: size[1])
    return torch.full((count,), length)


class Segments:
    """Sequences that PyTorch continues, one state after another."""

    def __init__(self, model: LanguageModel, states: list[list], mem_len: int, clamp_len: int):
        self._model, self._states = model, list(states)
        self._reading = {"mem_len": mem_len, "clamp_len": clamp_len, "same_length": True, "attention": "cached"}

    def read(self, tokens: Tensor) -> Tensor:
        """See ``Reader``."""
        found = []
        for number, column in enumerate(tokens[:, None].chunk(len(self._states))):
            output = self._model(column, self._states[number], **self._reading)
            self._states[number] = output.state
            found.append(self._model.log_probs(output.hidden[:, -1]))
        return torch.cat(found)


class _Head:
    """A head whose products are operators, with its weights laid out once."""

    def __init__(self, head: Head, kind: str):
        self._head, self._kind = head, kind
        self._joined: dict[tuple[int, int], Tensor] = {}
        self._rows: dict[tuple[int, ...], list[Tensor]] = {}
        if hasattr(head, "scales"):
            self._layer = multiplicative_layer(head.scales, head.bias, head.shared, kind)

    def __getattr__(self, name: str) -> Tensor:
        return getattr(self._head, name)

    def log_probs(self, hidden: Tensor) -> Tensor:
        return self._head.spec.logits(self, hidden).log_softmax(-1)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return self.product(x, weight, bias, self._kind)

    def project(self, x: Tensor, projection: Tensor) -> Tensor:
        return self.product(x, projection.t())

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None = None, kind: str = "float32") -> Tensor:
        """x W^T + b, with W stored as this kind: [B, D] to [B, n]."""
        key = weight.data_ptr(), *weight.shape, *weight.stride()
        if key not in self._rows:
            self._rows[key] = rows(weight, kind)
        return torch.ops.planer_cpp.decode_linear(x, self._rows[key], bias)

    def join(self, first: Tensor, second: Tensor) -> Tensor:
        key = first.data_ptr(), second.data_ptr()
        if key not in self._joined:
            self._joined[key] = torch.cat((first, second))
        return self._joined[key]

    def multiplicative(self, x: Tensor, scales: Tensor, shared: Tensor, bias: Tensor) -> Tensor:
        return torch.ops.planer_cpp.decode_multiplicative(x, self._layer)
