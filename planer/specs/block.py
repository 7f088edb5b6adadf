"""The specification that every kind of block has.

Counts follow the closed forms of Transformer-XL: FLOPs are 2 x multiply-adds of the matrix products.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, ClassVar, Protocol

from planer.parsing import Range

if TYPE_CHECKING:
    from torch import nn

    from planer.specs.architecture import Architecture
    from planer.specs.dynamic_moe import DynamicMoE

Size = Annotated[int, Range(1, 2**24)]
"""Symbols, neurons, heads, experts."""


class Backbone(Protocol):
    """The sizes that options are relative to; ``planer.config.ModelConfig`` has them."""

    d_model: int
    num_heads: int
    d_head: int
    d_inner: int
    num_experts: int


@dataclass(frozen=True)
class BlockSpec:
    """A block at one position of a network.  Every kind is a subclass in the file planer/specs/<kind>.py.

    planer/blocks/<kind>.py has its module: a function ``build(spec, shared)``.
    """

    kind: ClassVar[str]
    """The name of the two files.  Names of options begin with it."""
    label: ClassVar[str]
    """Name in figures."""
    colour: ClassVar[str] = "#56b4e9"
    text_colour: ClassVar[str] = "#ffffff"
    """Of its symbol on its colour."""
    options: ClassVar[tuple[str, ...]] = ()
    """Spellings of its options, for messages; empty for a kind that no design space may have."""
    settings: ClassVar[tuple[str, ...]] = ()
    """Fields with a default that ``model.blocks`` of a configuration may set."""
    starts_from: ClassVar[str] = ""
    """Kind of the parent's block that its initial weights come from; the same kind by default."""
    shared_under: ClassVar[tuple[str, ...]] = ()
    """Values of search.weight_sharing for which its options of a position use the weights of the largest one."""
    identity: ClassVar[bool] = False
    """Whether it is the identity: no weights, no latency."""
    remembers: ClassVar[bool] = False
    """Whether it reads other positions.  Its latency depends on the attention mode."""
    has_heads: ClassVar[bool] = False
    """Whether the number in its options' names counts heads; in figures it is the height of the block."""
    routes: ClassVar[bool] = False
    """Whether a router spreads tokens over num_experts experts.  Its latency depends on the routing.  Its block
    hands on ``balance`` and ``load`` (``Aux`` in planer/blocks/block.py)."""
    projects: ClassVar[bool] = False
    """Whether conversion can replace its projections by MLPs, where it is as wide as the network.  Its sublayer has
    those of planer/blocks/attention.py."""
    splits: ClassVar[bool] = False
    """Whether conversion splits it into experts (``split``).  Its layers are marked ``splits = True`` and have the
    ``linears`` of planer/blocks/feed_forward.py; its block hands on ``activations``."""
    dynamic: ClassVar[bool] = False
    """Whether a threshold decides how many of its experts run.  Its layers (``layers``) are those of
    planer/blocks/dynamic_moe.py; its block hands on ``inputs`` and ``executed``."""

    @classmethod
    def parse(cls, option: str, backbone: Backbone) -> BlockSpec | None:
        """The block of an option's name, in any spelling of its number; None for names of other kinds.

        Raises ValueError for a number that is not allowed.
        """
        return None

    @classmethod
    def symbols(cls, backbone: Backbone) -> dict[str, BlockSpec]:
        """Blocks by their symbol in pattern notation, a letter with or without a number."""
        return {}

    @classmethod
    def option_label(cls, number: int) -> str:
        """Name in figures of an option with this number in its name, 0 for none."""
        return f"{cls.label}, {number}" if number else cls.label

    @property
    def name(self) -> str:
        """Name of the option in latency tables and design spaces."""
        return self.kind

    @property
    def symbol(self) -> str:
        """The block in pattern notation."""
        raise NotImplementedError

    def symbol_in(self, d_model: int) -> str:
        """The block in the pattern of a network of this width."""
        return self.symbol

    @property
    def size(self) -> int:
        """Size among the options of its kind: heads, experts per token."""
        return 1

    def check(self) -> None:
        """Raise ValueError for sizes that do not fit each other."""

    def shapes(self) -> dict[str, int]:
        """Sizes of the backbone that this block's latency depends on, by their names in the configuration."""
        return {}

    def params(self, d_model: int) -> int:
        """Number of trainable parameters, LayerNorm included."""
        raise NotImplementedError

    def active_params(self, d_model: int) -> int:
        """Parameters used for one token (a mixture of experts uses top_k of its experts)."""
        return self.params(d_model)

    def flops(self, d_model: int, batch: int, tgt_len: int, mem_len: int, attention: str) -> float:
        """Forward FLOPs per token for segments of tgt_len queries over mem_len remembered positions."""
        raise NotImplementedError

    def activations(self, d_model: int, batch: int, tgt_len: int, mem_len: int) -> int:
        """Numbers that one training step keeps for its backward pass, memory of the block included."""
        raise NotImplementedError

    def remembered(self, d_model: int, attention: str) -> int:
        """Numbers per position that an inference keeps: keys and values, or hidden states."""
        return 0

    def split(self, expert_size: int) -> BlockSpec:
        """What conversion makes of it, where it ``splits``."""
        raise NotImplementedError

    def layers(self, reads: float = 1.0) -> dict[str, tuple[DynamicMoE, float]]:
        """Where it is ``dynamic``: its layers, and how often a token passes each, by the ends of their names.

        reads: how often a token passes the layers that memory passes too.
        """
        raise NotImplementedError

    def unconverted_flops(self, d_model: int, reads: float = 1.0) -> float:
        """Where it is ``dynamic``: FLOPs per token of what its layers were before conversion.  reads: as of layers."""
        raise NotImplementedError

    def build(self, shared: Architecture) -> nn.Module:
        """The block's module with the width, norm and dropout of an architecture."""
        return import_module(f"planer.blocks.{self.kind}").build(self, shared)


def number_after(prefix: str, option: str) -> int | None:
    """The number after a prefix, such as 4 in attention_4; None for other names."""
    match = re.fullmatch(rf"{re.escape(prefix)}(\d{{1,9}})", option)
    return int(match[1]) if match else None
