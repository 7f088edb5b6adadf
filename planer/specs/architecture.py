"""Architectures: descriptions of networks, without weights."""

from __future__ import annotations

from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Literal, get_type_hints

from planer.errors import Damaged, UserError
from planer.files import check_shape, one_line, read_yaml, write_yaml
from planer.heads import HeadSpec, Softmax
from planer.parsing import Range, build, convert
from planer.specs.block import BlockSpec, Size
from planer.specs.notation import MAX_BLOCKS, to_notation
from planer.specs.registry import kinds

Share = Annotated[float, Range(0, 1, below=True)]
"""Dropout."""
MAX_PARAMS = 1e12
"""Most parameters of a network."""
EMBEDDING_AND_HEAD = "embedding_and_head"
"""Option of latency tables for the parts of a network beside its blocks."""


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
        """Parameters used for one token."""
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
        """Write YAML.  notes (selection scores, solver status, ...) are stored too; load() ignores them."""
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
    """The note ``selection`` of an architecture.yaml, which says how the network was chosen.

    Raises UserError when the file is missing, damaged or changed, or the note does not fit selection.schema.json.
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
    """A block from plain values.  Raises ValueError or UserError for others."""
    kind = kinds().get(str(entry.get("kind"))) if isinstance(entry, dict) else None
    if kind is None:
        name = entry.get("kind") if isinstance(entry, dict) else entry
        raise ValueError(f"unknown block kind {one_line(repr(name), 80)}; allowed: {', '.join(kinds())}")
    sizes = {f.name: f.default for f in fields(kind) if f.default is not MISSING} | entry
    del sizes["kind"]
    block = build(kind, sizes, kind.kind)
    block.check()
    return block
