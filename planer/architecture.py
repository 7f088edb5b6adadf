"""Block specifications and architectures: what a network is, before any weight exists.

An architecture is a sequence of block specifications plus the few numbers that all blocks share.  It reads and
writes the notation of the Sandwich Transformer and PAR papers, ``(sfff)x6(f)x8``, with one symbol per block:

======  =====================================================  =====================
symbol  block                                                  option name
======  =====================================================  =====================
``i``   skip, the bare identity                                ``skip``
``s``   self-attention with all heads                          ``attention_<heads>``
``s4``  self-attention with 4 heads, d_head unchanged          ``attention_4``
``f``   feed-forward layer                                     ``feed_forward``
``m2``  mixture of experts, 2 experts per token                ``moe_top2``
``d16`` dense layer split into experts of 16 neurons           (conversion only)
======  =====================================================  =====================

Counts follow the closed forms of Transformer-XL: FLOPs are 2 x multiply-adds of the matrix products.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import ClassVar

import yaml

from planer.files import write_text

MAX_BLOCKS = 1_000
"""Most blocks of a network: thirty times as many as the papers' deepest."""


@dataclass(frozen=True)
class BlockSpec:
    """One position of a network.  Subclasses say which block stands there and how large it is."""

    kind: ClassVar[str]

    @property
    def name(self) -> str:
        """Key of the block in latency tables and design spaces."""
        return self.kind

    @property
    def symbol(self) -> str:
        """The block in pattern notation."""
        raise NotImplementedError

    def params(self, d_model: int) -> int:
        """Number of trainable parameters, LayerNorm included."""
        raise NotImplementedError

    def active_params(self, d_model: int) -> int:
        """Parameters that one token meets (a mixture of experts uses top_k of its experts)."""
        return self.params(d_model)

    def flops(self, d_model: int, batch: int, tgt_len: int, mem_len: int, attention: str) -> float:
        """Forward FLOPs per token for segments of tgt_len queries over mem_len remembered positions."""
        raise NotImplementedError

    def activations(self, d_model: int, batch: int, tgt_len: int, mem_len: int) -> int:
        """Numbers that one training step keeps for its backward pass, memory of the block included."""
        raise NotImplementedError


@dataclass(frozen=True)
class Skip(BlockSpec):
    """The identity: no parameters, no work, no LayerNorm."""

    kind: ClassVar[str] = "skip"
    symbol: ClassVar[str] = "i"

    def params(self, d_model: int) -> int:
        return 0

    def flops(self, d_model: int, batch: int, tgt_len: int, mem_len: int, attention: str) -> float:
        return 0.0

    def activations(self, d_model: int, batch: int, tgt_len: int, mem_len: int) -> int:
        return 0


@dataclass(frozen=True)
class Attention(BlockSpec):
    """Relative multi-head attention.  Pruning heads keeps d_head, so cost is proportional to num_heads."""

    num_heads: int
    d_head: int
    kind: ClassVar[str] = "attention"

    @property
    def name(self) -> str:
        return f"attention_{self.num_heads}"

    @property
    def symbol(self) -> str:
        return f"s{self.num_heads}"

    @property
    def width(self) -> int:
        """Width of the concatenated heads."""
        return self.num_heads * self.d_head

    def params(self, d_model: int) -> int:
        return 5 * d_model * self.width + 2 * self.width + 2 * d_model

    def flops(self, d_model: int, batch: int, tgt_len: int, mem_len: int, attention: str) -> float:
        keys = tgt_len + mem_len
        projected = keys / tgt_len if attention == "recompute" else 1
        queries_and_output = 4 * d_model * self.width
        keys_and_values = 4 * d_model * self.width * projected
        positions = 2 * d_model * self.width * keys / (tgt_len * batch) if attention == "recompute" else 0
        scores = 3 * 2 * keys * self.width
        return queries_and_output + keys_and_values + positions + scores

    def activations(self, d_model: int, batch: int, tgt_len: int, mem_len: int) -> int:
        """Inputs and outputs of the projections, and four matrices of scores: by content, by position, their softmax,
        and the gradient of it."""
        queries, keys = batch * tgt_len, batch * (tgt_len + mem_len)
        projected = keys * (d_model + 2 * self.width) + queries * (4 * d_model + 4 * self.width)
        return projected + 4 * self.num_heads * queries * (tgt_len + mem_len)


@dataclass(frozen=True)
class FeedForward(BlockSpec):
    """Position-wise feed-forward layer, ReLU, with biases; ``scale`` times as wide as the backbone's."""

    d_inner: int
    scale: int = 1
    kind: ClassVar[str] = "feed_forward"

    @property
    def name(self) -> str:
        return f"feed_forward_x{self.scale}" if self.scale > 1 else "feed_forward"

    @property
    def symbol(self) -> str:
        return f"f{self.scale}" if self.scale > 1 else "f"

    def params(self, d_model: int) -> int:
        return 2 * d_model * self.d_inner + self.d_inner + d_model + 2 * d_model

    def flops(self, d_model: int, batch: int, tgt_len: int, mem_len: int, attention: str) -> float:
        return 4 * d_model * self.d_inner

    def activations(self, d_model: int, batch: int, tgt_len: int, mem_len: int) -> int:
        return batch * tgt_len * (4 * d_model + 2 * self.d_inner)


@dataclass(frozen=True)
class MoE(BlockSpec):
    """num_experts feed-forward layers behind a bias-free softmax gate, top_k of them per token."""

    d_inner: int
    num_experts: int
    top_k: int
    kind: ClassVar[str] = "moe"

    @property
    def name(self) -> str:
        return f"moe_top{self.top_k}"

    @property
    def symbol(self) -> str:
        return f"m{self.top_k}"

    def _expert_params(self, d_model: int) -> int:
        return 2 * d_model * self.d_inner + self.d_inner + d_model

    def params(self, d_model: int) -> int:
        return self.num_experts * (self._expert_params(d_model) + d_model) + 2 * d_model

    def active_params(self, d_model: int) -> int:
        return self.top_k * self._expert_params(d_model) + self.num_experts * d_model + 2 * d_model

    def flops(self, d_model: int, batch: int, tgt_len: int, mem_len: int, attention: str) -> float:
        return self.top_k * 4 * d_model * self.d_inner + 2 * d_model * self.num_experts

    def activations(self, d_model: int, batch: int, tgt_len: int, mem_len: int) -> int:
        """Every token is kept once for each of its experts."""
        return batch * tgt_len * (4 * d_model + self.top_k * (2 * d_model + 2 * self.d_inner) + self.num_experts)


@dataclass(frozen=True)
class DynamicMoE(BlockSpec):
    """A dense feed-forward layer split into experts of expert_size neurons, with a norm-regressing router."""

    d_inner: int
    expert_size: int
    router_width: int
    kind: ClassVar[str] = "dynamic_moe"

    @property
    def symbol(self) -> str:
        return f"d{self.expert_size}"

    @property
    def num_experts(self) -> int:
        """How many experts the dense layer was split into."""
        return self.d_inner // self.expert_size

    def _router_params(self, d_model: int) -> int:
        return self.router_width * (d_model + self.num_experts)

    def params(self, d_model: int) -> int:
        return FeedForward(self.d_inner).params(d_model) + self._router_params(d_model)

    def flops(self, d_model: int, batch: int, tgt_len: int, mem_len: int, attention: str) -> float:
        """All experts and the router; the dynamic-k sweep counts what a threshold really executes."""
        return 4 * d_model * self.d_inner + 2 * self._router_params(d_model)

    def activations(self, d_model: int, batch: int, tgt_len: int, mem_len: int) -> int:
        return batch * tgt_len * (4 * d_model + 2 * self.d_inner + self.router_width + self.num_experts)


BLOCK_KINDS: dict[str, type[BlockSpec]] = {spec.kind: spec for spec in (Skip, Attention, FeedForward, MoE, DynamicMoE)}


@dataclass(frozen=True)
class Architecture:
    """A whole language model: the blocks and the numbers they share.

    norm is ``post`` (LN(x + f(x)), Transformer-XL) or ``pre`` (x + f(LN(x)) with a final LayerNorm).
    """

    vocab_size: int
    d_model: int
    blocks: tuple[BlockSpec, ...]
    norm: str = "post"
    dropout: float = 0.1
    moe_dropout: float = 0.1
    attention_dropout: float = 0.0
    init_std: float = 0.02

    @property
    def pattern(self) -> str:
        """The block sequence in the papers' notation."""
        return to_notation(self.blocks, self.d_model)

    def params(self) -> int:
        """Trainable parameters: blocks, tied embedding, output bias, and the final LayerNorm of pre-norm."""
        return self._shared_params() + sum(block.params(self.d_model) for block in self.blocks)

    def active_params(self) -> int:
        """Parameters that one token meets."""
        return self._shared_params() + sum(block.active_params(self.d_model) for block in self.blocks)

    def flops(self, batch: int, tgt_len: int, mem_len: int, attention: str) -> float:
        """Forward FLOPs per token, softmax head included."""
        head = 2 * self.d_model * self.vocab_size
        return head + sum(block.flops(self.d_model, batch, tgt_len, mem_len, attention) for block in self.blocks)

    def _shared_params(self) -> int:
        final_norm = 2 * self.d_model if self.norm == "pre" else 0
        return self.vocab_size * (self.d_model + 1) + final_norm

    def to_dict(self) -> dict:
        """Plain values for YAML and JSON."""
        shared = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "blocks"}
        return shared | {"blocks": [{"kind": block.kind} | asdict(block) for block in self.blocks]}

    @classmethod
    def from_dict(cls, values: dict) -> Architecture:
        """Inverse of to_dict.

        Raises ValueError for a block kind that does not exist.
        """
        blocks = []
        for entry in values["blocks"]:
            entry = dict(entry)
            kind = entry.pop("kind")
            if kind not in BLOCK_KINDS:
                raise ValueError(f"architecture: unknown block kind {kind!r}; allowed: {', '.join(BLOCK_KINDS)}")
            blocks.append(BLOCK_KINDS[kind](**entry))
        known = {f.name for f in fields(cls)} - {"blocks"}
        return cls(blocks=tuple(blocks), **{key: values[key] for key in known if key in values})

    def save(self, path: str | Path, **notes) -> None:
        """Write YAML; notes (selection scores, solver status, ...) go beside the network and load() ignores them."""
        content = {"pattern": self.pattern, **self.to_dict(), **notes}
        write_text(path, yaml.safe_dump(content, sort_keys=False, width=120))

    @classmethod
    def load(cls, path: str | Path) -> Architecture:
        """Read what save() wrote."""
        return cls.from_dict(yaml.safe_load(Path(path).read_text()))


def load_notes(path: str | Path) -> dict:
    """The notes that ``Architecture.save`` wrote beside the network."""
    content = yaml.safe_load(Path(path).read_text())
    return {key: value for key, value in content.items() if key not in {"pattern", *Architecture.__dataclass_fields__}}


def to_notation(blocks: tuple[BlockSpec, ...], d_model: int) -> str:
    """Write blocks as ``(sf)x4``: repeated groups, found from the left; attention as wide as d_model is plain ``s``.

    >>> to_notation((Attention(1, 4), Attention(2, 4), FeedForward(8), FeedForward(8)), d_model=8)
    's1s(f)x2'
    """
    full = [isinstance(block, Attention) and block.width == d_model for block in blocks]
    symbols = ["s" if plain else block.symbol for plain, block in zip(full, blocks, strict=True)]
    parts, start = [], 0
    while start < len(symbols):
        width, repeats = _longest_repeat(symbols[start:])
        group = "".join(symbols[start : start + width])
        parts.append(f"({group})x{repeats}" if repeats > 1 else group)
        start += width * repeats
    return "".join(parts)


def _longest_repeat(symbols: list[str]) -> tuple[int, int]:
    """Group width and repeat count covering most of the list's head; (1, 1) when nothing repeats."""
    best = (1, 1)
    for width in range(1, len(symbols) // 2 + 1):
        repeats = 1
        while symbols[repeats * width : (repeats + 1) * width] == symbols[:width]:
            repeats += 1
        if repeats > 1 and width * repeats > best[0] * best[1]:
            best = (width, repeats)
    return best


def from_notation(text: str, options: dict[str, BlockSpec]) -> tuple[BlockSpec, ...]:
    """Read ``(sfff)x6(f)x8`` into block specifications.

    options maps symbols (``s``, ``f``, ``s4``, ``m2``, ...) to specifications.
    Raises ValueError, naming the symbol or the place, for anything else and for more than MAX_BLOCKS blocks.
    """
    blocks: list[BlockSpec] = []
    position = 0
    group_pattern = re.compile(r"\(((?:[a-z][0-9]*)+)\)x([1-9][0-9]*)|([a-z][0-9]*)")
    while position < len(text):
        match = group_pattern.match(text, position)
        if not match:
            place = text[position : position + 20]
            raise ValueError(f"pattern {_shortened(text)!r}: cannot read {place!r}; write groups as (sf)x4")
        symbols = re.findall(r"[a-z][0-9]*", match[1] or match[3])
        repeats = int(match[2][:9]) if match[2] else 1  # nine digits are too many already
        if len(blocks) + len(symbols) * repeats > MAX_BLOCKS:
            raise ValueError(f"pattern {_shortened(text)!r}: more than {MAX_BLOCKS:,} blocks")
        for symbol in symbols:
            if symbol not in options:
                spelling = re.sub("^(.)0+", r"\1", symbol)
                hint = f"write it {spelling}" if spelling in options else f"allowed: {_summary(options)}"
                raise ValueError(f"pattern {_shortened(text)!r}: unknown block {symbol!r}; {hint}")
        blocks += [options[symbol] for symbol in symbols] * repeats
        position = match.end()
    if not blocks:
        raise ValueError("pattern is empty; write the blocks in order, such as (sf)x4")
    return tuple(blocks)


def _summary(symbols: Iterable[str]) -> str:
    """Symbols for a message: ``i, s, f, s1 to s8``."""
    shown = [symbol for symbol in symbols if len(symbol) == 1]
    numbers: dict[str, list[int]] = {}
    for symbol in symbols:
        if len(symbol) > 1:
            numbers.setdefault(symbol[0], []).append(int(symbol[1:]))
    for letter, found in numbers.items():
        last = f" to {letter}{max(found)}" if len(found) > 1 else ""
        shown.append(f"{letter}{min(found)}{last}")
    return ", ".join(shown)


def _shortened(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:60]}..."
