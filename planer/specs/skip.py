"""A position without a block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from planer.specs.block import Backbone, BlockSpec


@dataclass(frozen=True)
class Skip(BlockSpec):
    """The identity: no parameters, no work, no LayerNorm."""

    kind: ClassVar[str] = "skip"
    label: ClassVar[str] = "skip"
    colour: ClassVar[str] = "#dfe4e9"
    text_colour: ClassVar[str] = "#1b2530"
    options: ClassVar[tuple[str, ...]] = ("skip",)
    identity: ClassVar[bool] = True
    symbol: ClassVar[str] = "i"

    @classmethod
    def parse(cls, option: str, backbone: Backbone) -> Skip | None:
        return cls() if option == "skip" else None

    @classmethod
    def symbols(cls, backbone: Backbone) -> dict[str, Skip]:
        return {"i": cls()}

    def params(self, d_model: int) -> int:
        return 0

    def flops(self, d_model: int, batch: int, tgt_len: int, mem_len: int, attention: str) -> float:
        return 0.0

    def activations(self, d_model: int, batch: int, tgt_len: int, mem_len: int) -> int:
        return 0
