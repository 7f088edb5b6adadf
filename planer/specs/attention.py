"""Relative multi-head attention with all heads, ``s``, or with 4 of them, ``s4``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from planer.parsing import show
from planer.specs.block import Backbone, BlockSpec, Size, number_after


@dataclass(frozen=True)
class Attention(BlockSpec):
    """Relative multi-head attention.  Pruning heads keeps d_head, so cost is proportional to num_heads."""

    num_heads: Size
    d_head: Size
    kind: ClassVar[str] = "attention"
    label: ClassVar[str] = "attention"
    colour: ClassVar[str] = "#0072b2"
    options: ClassVar[tuple[str, ...]] = ("attention_<heads>",)
    shared_under: ClassVar[tuple[str, ...]] = ("heads", "all")
    remembers: ClassVar[bool] = True
    has_heads: ClassVar[bool] = True
    projects: ClassVar[bool] = True

    @classmethod
    def parse(cls, option: str, backbone: Backbone) -> Attention | None:
        if (heads := number_after("attention_", option)) is None:
            return None
        if not 1 <= heads <= backbone.num_heads:
            raise ValueError(f"{show(option)} asks for {heads} heads; allowed: 1 to {backbone.num_heads}")
        return cls(heads, backbone.d_head)

    @classmethod
    def symbols(cls, backbone: Backbone) -> dict[str, Attention]:
        pruned = {f"s{heads}": cls(heads, backbone.d_head) for heads in range(1, backbone.num_heads + 1)}
        return {"s": cls(backbone.num_heads, backbone.d_head)} | pruned

    @classmethod
    def option_label(cls, number: int) -> str:
        return f"attention, {number} head{'s' if number > 1 else ''}"

    @property
    def name(self) -> str:
        return f"attention_{self.num_heads}"

    @property
    def symbol(self) -> str:
        return f"s{self.num_heads}"

    def symbol_in(self, d_model: int) -> str:
        """Attention as wide as the network is plain ``s``."""
        return "s" if self.width == d_model else self.symbol

    @property
    def size(self) -> int:
        return self.num_heads

    @property
    def width(self) -> int:
        """Width of the concatenated heads."""
        return self.num_heads * self.d_head

    def params(self, d_model: int) -> int:
        return 5 * d_model * self.width + 2 * self.width + 2 * d_model

    def flops(self, d_model: int, batch: int, tgt_len: int, mem_len: int, attention: str) -> float:
        keys = tgt_len + mem_len
        projections = self._projection_flops(d_model, tgt_len, mem_len, attention)
        positions = 2 * d_model * self.width * keys / (tgt_len * batch) if attention == "recompute" else 0
        scores = 3 * 2 * keys * self.width
        return projections + positions + scores

    def _projection_flops(self, d_model: int, tgt_len: int, mem_len: int, attention: str) -> float:
        """Of queries, keys, values and output, per token."""
        projected = (tgt_len + mem_len) / tgt_len if attention == "recompute" else 1
        queries_and_output = 4 * d_model * self.width
        keys_and_values = 4 * d_model * self.width * projected
        return queries_and_output + keys_and_values

    def activations(self, d_model: int, batch: int, tgt_len: int, mem_len: int) -> int:
        """Inputs and outputs of the projections, and four matrices of scores: by content, by position, their softmax,
        and the gradient of it."""
        queries, keys = batch * tgt_len, batch * (tgt_len + mem_len)
        projected = keys * (d_model + 2 * self.width) + queries * (4 * d_model + 4 * self.width)
        return projected + 4 * self.num_heads * queries * (tgt_len + mem_len)

    def remembered(self, d_model: int, attention: str) -> int:
        return 2 * self.width if attention == "cached" else d_model
