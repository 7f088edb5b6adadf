"""Position-wise feed-forward layers: ``f``, or ``f4``, four times as wide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from planer.parsing import show
from planer.specs.block import Backbone, BlockSpec, Size, number_after

MAX_SCALE = 1_000
"""Largest s of feed_forward_x<s>."""


@dataclass(frozen=True)
class FeedForward(BlockSpec):
    """Position-wise feed-forward layer, ReLU, with biases; ``scale`` times as wide as the backbone's."""

    d_inner: Size
    scale: Size = 1
    kind: ClassVar[str] = "feed_forward"
    label: ClassVar[str] = "feed-forward"
    colour: ClassVar[str] = "#e69f00"
    text_colour: ClassVar[str] = "#231a05"
    options: ClassVar[tuple[str, ...]] = ("feed_forward", "feed_forward_x<2 or more>")
    splits: ClassVar[bool] = True

    @classmethod
    def parse(cls, option: str, backbone: Backbone) -> FeedForward | None:
        if option == "feed_forward":
            return cls(backbone.d_inner)
        if (scale := number_after("feed_forward_x", option)) is None:
            return None
        if not 2 <= scale <= MAX_SCALE:
            raise ValueError(f"{show(option)} is {scale} times as wide; allowed: 2 to {MAX_SCALE:,}")
        return cls(backbone.d_inner * scale, scale)

    @classmethod
    def symbols(cls, backbone: Backbone) -> dict[str, FeedForward]:
        wide = {f"f{scale}": cls(backbone.d_inner * scale, scale) for scale in range(2, backbone.num_experts + 1)}
        return {"f": cls(backbone.d_inner)} | wide

    @classmethod
    def option_label(cls, number: int) -> str:
        return f"feed-forward, {number} times as wide" if number else "feed-forward"

    @property
    def name(self) -> str:
        return f"feed_forward_x{self.scale}" if self.scale > 1 else "feed_forward"

    @property
    def symbol(self) -> str:
        return f"f{self.scale}" if self.scale > 1 else "f"

    @property
    def size(self) -> int:
        return self.scale

    def check(self) -> None:
        if self.d_inner % self.scale:
            raise ValueError(f"feed_forward: {self.scale} does not divide d_inner, {self.d_inner}")

    def shapes(self) -> dict[str, int]:
        return {"d_inner": self.d_inner // self.scale}

    def split(self, expert_size: int) -> BlockSpec:
        from planer.specs.dynamic_moe import DynamicMoE  # it imports this module

        return DynamicMoE(self.d_inner, expert_size)

    def params(self, d_model: int) -> int:
        return 2 * d_model * self.d_inner + self.d_inner + d_model + 2 * d_model

    def flops(self, d_model: int, batch: int, tgt_len: int, mem_len: int, attention: str) -> float:
        return 4 * d_model * self.d_inner

    def activations(self, d_model: int, batch: int, tgt_len: int, mem_len: int) -> int:
        return batch * tgt_len * (4 * d_model + 2 * self.d_inner)
