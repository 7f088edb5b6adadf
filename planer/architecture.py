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

from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, ClassVar, Literal, get_type_hints

from planer.files import Damaged, UserError, check_shape, one_line, read_yaml, write_yaml
from planer.heads import HeadSpec, Softmax
from planer.notation import MAX_BLOCKS
from planer.parsing import Range, build, convert

Size = Annotated[int, Range(1, 2**24)]
"""Symbols, neurons, heads, experts."""
Share = Annotated[float, Range(0, 1, below=True)]
"""Dropout."""
MAX_PARAMS = 1e12
"""Most parameters of a network."""


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

    num_heads: Size
    d_head: Size
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

    d_inner: Size
    scale: Size = 1
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

    d_inner: Size
    num_experts: Size
    top_k: Size
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
    """A dense feed-forward layer split into experts of expert_size neurons, with a norm-regressing router.

    router_width 0: a layer that has no router yet.  tau: the threshold that the layer runs at; 0 runs all experts.
    """

    d_inner: Size
    expert_size: Size
    router_width: Annotated[int, Range(0, 2**24)] = 0
    tau: Annotated[float, Range(0, 1)] = 0.0
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

    vocab_size: Size
    d_model: Size
    blocks: tuple[BlockSpec, ...]
    norm: Literal["post", "pre"] = "post"
    dropout: Share = 0.1
    moe_dropout: Share = 0.1
    attention_dropout: Share = 0.0
    init_std: Annotated[float, Range(0, 1_000_000, above=True)] = 0.02
    head: HeadSpec = Softmax()

    @property
    def pattern(self) -> str:
        """The block sequence in the papers' notation."""
        return to_notation(self.blocks, self.d_model)

    def params(self) -> int:
        """Trainable parameters: blocks, embedding, head, and the final LayerNorm of pre-norm."""
        return self._shared_params() + sum(block.params(self.d_model) for block in self.blocks)

    def active_params(self) -> int:
        """Parameters that one token meets."""
        return self._shared_params() + sum(block.active_params(self.d_model) for block in self.blocks)

    def flops(self, batch: int, tgt_len: int, mem_len: int, attention: str) -> float:
        """Forward FLOPs per token, embedding and head included."""
        head = self.head.flops(self.vocab_size, self.d_model)
        return head + sum(block.flops(self.d_model, batch, tgt_len, mem_len, attention) for block in self.blocks)

    def _shared_params(self) -> int:
        final_norm = 2 * self.d_model if self.norm == "pre" else 0
        return self.head.params(self.vocab_size, self.d_model) + final_norm

    def to_dict(self) -> dict:
        """Plain values for YAML and JSON."""
        shared = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "blocks"}
        shared |= {"head": self.head.to_dict()}
        return shared | {"blocks": [{"kind": block.kind} | asdict(block) for block in self.blocks]}

    @classmethod
    def from_dict(cls, values: dict) -> Architecture:
        """Inverse of to_dict; other keys are ignored.

        Raises ValueError for a missing key, a block kind that does not exist, and values of a wrong type or size.
        """
        entries, hints = values.get("blocks"), get_type_hints(cls, include_extras=True)
        if not isinstance(entries, list) or not 1 <= len(entries) <= MAX_BLOCKS:
            raise ValueError(f"blocks must list 1 to {MAX_BLOCKS:,} blocks")
        shared = {f.name: values.get(f.name, f.default) for f in fields(cls) if f.name != "blocks"}
        if MISSING in shared.values():
            raise ValueError("vocab_size and d_model must be there")
        try:
            shared = {name: convert(hints[name], value, name) for name, value in shared.items()}
            architecture = cls(blocks=tuple(_block_from_dict(entry) for entry in entries), **shared)
            architecture.head.check(architecture.vocab_size, architecture.d_model)
        except UserError as error:
            raise ValueError(str(error).removeprefix("config: ")) from error
        if architecture.d_model % 2:
            raise ValueError(f"d_model is {architecture.d_model}; it must be even")
        if architecture.params() > MAX_PARAMS:
            raise ValueError(f"{architecture.params():.3g} parameters are more than any machine holds")
        return architecture

    def save(self, path: str | Path, **notes) -> None:
        """Write YAML; notes (selection scores, solver status, ...) go beside the network and load() ignores them."""
        write_yaml(path, {"pattern": self.pattern, **self.to_dict(), **notes})

    @classmethod
    def load(cls, path: str | Path) -> Architecture:
        """Read what save() wrote.

        Raises UserError when the file is missing, damaged or changed, or describes no network.
        """
        content = _read(path)
        try:
            architecture = cls.from_dict(content)
        except ValueError as error:
            raise Damaged(path, f"describes no architecture: {one_line(error)}") from error
        if content.get("pattern", architecture.pattern) != architecture.pattern:
            raise Damaged(path, f"contradicts itself: its blocks are {architecture.pattern}, its pattern is another")
        return architecture


def load_selection(path: str | Path) -> dict:
    """How the network was chosen: the note ``selection`` that ``Architecture.save`` wrote beside it.

    Raises UserError when the file is missing, damaged or changed, or the note is not as selection.schema.json says.
    """
    selection = _read(path).get("selection")
    check_shape(path, selection, "selection")
    return selection


def _read(path: str | Path) -> dict:
    """All keys of an architecture.yaml."""
    content = read_yaml(path)
    if unknown := content.keys() - {"pattern", "selection", *Architecture.__dataclass_fields__}:
        raise Damaged(path, f"has an unknown key {one_line(min(map(repr, unknown)), 80)}")
    return content


def _block_from_dict(entry: object) -> BlockSpec:
    """Raises ValueError or UserError for what is no block."""
    kind = BLOCK_KINDS.get(str(entry.get("kind"))) if isinstance(entry, dict) else None
    if kind is None:
        name = entry.get("kind") if isinstance(entry, dict) else entry
        raise ValueError(f"unknown block kind {one_line(repr(name), 80)}; allowed: {', '.join(BLOCK_KINDS)}")
    sizes = {f.name: f.default for f in fields(kind) if f.default is not MISSING} | entry
    del sizes["kind"]
    block = build(kind, sizes, kind.kind)
    if isinstance(block, MoE) and block.top_k > block.num_experts:
        raise ValueError(f"moe.top_k is {block.top_k}, more than its {block.num_experts} experts")
    part = getattr(block, "expert_size", getattr(block, "scale", 1))
    if part > 1 and block.d_inner % part:
        raise ValueError(f"{kind.kind}: {part} does not divide d_inner, {block.d_inner}")
    return block


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
