"""What every kind of block says about itself.

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

Size = Annotated[int, Range(1, 2**24)]
"""Symbols, neurons, heads, experts."""


class Backbone(Protocol):
    """The sizes that names of options are relative to; ``planer.config.ModelConfig`` has them."""

    d_model: int
    num_heads: int
    d_head: int
    d_inner: int
    num_experts: int


@dataclass(frozen=True)
class BlockSpec:
    """One position of a network.  A subclass, alone in the file planer/specs/<kind>.py, says which block stands there.

    planer/blocks/<kind>.py has its module: a function ``build(spec, shared)``.
    """

    kind: ClassVar[str]
    """The name of the two files.  Names of options begin with it."""
    label: ClassVar[str]
    """What figures call it."""
    colour: ClassVar[str] = "#56b4e9"
    text_colour: ClassVar[str] = "#ffffff"
    """Of its symbol on its colour."""
    options: ClassVar[tuple[str, ...]] = ()
    """How its options are spelled, for messages; none where no design space may name it."""
    settings: ClassVar[tuple[str, ...]] = ()
    """Fields with a default that ``model.blocks`` of a configuration may set."""
    starts_from: ClassVar[str] = ""
    """Kind of the parent's block that its weights are taken from; its own kind by default."""
    shared_under: ClassVar[tuple[str, ...]] = ()
    """Values of search.weight_sharing under which its options of a position use the weights of the largest."""
    identity: ClassVar[bool] = False
    """Whether it does nothing: no weights, no latency."""
    remembers: ClassVar[bool] = False
    """Whether it reads other positions.  Its latency depends on the attention mode."""
    has_heads: ClassVar[bool] = False
    """Whether the number in the names of its options counts heads; figures draw the block as high."""
    routes: ClassVar[bool] = False
    """Whether a router spreads tokens over num_experts experts.  Its latency depends on the routing.  Its sublayer has
    the attributes ``routes = True``, ``balance`` and ``load`` of planer/blocks/moe.py."""
    splits: ClassVar[bool] = False
    """Whether conversion splits it into experts.  Its sublayer is marked ``splits = True`` and has the weights of
    planer/blocks/feed_forward.py."""
    dynamic: ClassVar[bool] = False
    """Whether a threshold decides how many of its experts run.  Its sublayer is marked ``dynamic = True``."""

    @classmethod
    def parse(cls, option: str, backbone: Backbone) -> BlockSpec | None:
        """The block that an option's name stands for, in any spelling of its number; None for names of other kinds.

        Raises ValueError for a number that is not allowed.
        """
        return None

    @classmethod
    def symbols(cls, backbone: Backbone) -> dict[str, BlockSpec]:
        """Symbols of pattern notation, a letter with or without a number, and the blocks they stand for."""
        return {}

    @classmethod
    def option_label(cls, number: int) -> str:
        """What figures call an option with this number in its name, 0 for none."""
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
        """How large it is among the options of its kind: heads, experts per token."""
        return 1

    def check(self) -> None:
        """Raise ValueError for sizes that do not fit each other."""

    def shapes(self) -> dict[str, int]:
        """Sizes of the backbone that a latency of this block holds for, by their names in the configuration."""
        return {}

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

    def remembered(self, d_model: int, attention: str) -> int:
        """Numbers per position that an inference keeps: keys and values, or hidden states."""
        return 0

    def build(self, shared: Architecture) -> nn.Module:
        """The block's module with the width, norm and dropout of an architecture."""
        return import_module(f"planer.blocks.{self.kind}").build(self, shared)


def number_after(stem: str, option: str) -> int | None:
    """4 of attention_4 after ``attention_``; None where the name is another one."""
    match = re.fullmatch(rf"{re.escape(stem)}(\d{{1,9}})", option)
    return int(match[1]) if match else None
