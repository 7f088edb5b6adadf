"""Attention with multiplicative projections: ``q16``, of 16 modules (Sparse is Enough, arXiv 2111.12763)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from planer.parsing import show
from planer.specs.attention import Attention
from planer.specs.block import Backbone, Size, number_after


@dataclass(frozen=True)
class SparseAttention(Attention):
    """Relative attention with all heads.  Queries, keys, values, output and positions are multiplicative layers.

    The layers save weights, not multiplications: FLOPs are those of dense attention.
    """

    modules: Size
    kind: ClassVar[str] = "sparse_attention"
    label: ClassVar[str] = "sparse attention"
    colour: ClassVar[str] = "#56b4e9"
    text_colour: ClassVar[str] = "#1b2530"
    options: ClassVar[tuple[str, ...]] = ("sparse_attention_<modules>",)
    shared_under: ClassVar[tuple[str, ...]] = ()
    has_heads: ClassVar[bool] = False
    projects: ClassVar[bool] = False
    starts_from: ClassVar[str] = "attention"
    letter: ClassVar[str] = "q"
    """Of its symbols."""

    @classmethod
    def parse(cls, option: str, backbone: Backbone) -> SparseAttention | None:
        if (modules := number_after(f"{cls.kind}_", option)) is None:
            return None
        if modules < 2 or backbone.d_model % modules:
            allowed = f"allowed: 2 or more that divide d_model, {backbone.d_model}"
            raise ValueError(f"{show(option)} has {modules} modules; {allowed}")
        return cls(backbone.num_heads, backbone.d_head, modules)

    @classmethod
    def symbols(cls, backbone: Backbone) -> dict[str, SparseAttention]:
        counts = [count for count in range(2, backbone.d_model + 1) if backbone.d_model % count == 0]
        return {f"{cls.letter}{count}": cls(backbone.num_heads, backbone.d_head, count) for count in counts}

    @classmethod
    def option_label(cls, number: int) -> str:
        return f"{cls.label}, {number} modules"

    @property
    def name(self) -> str:
        return f"{self.kind}_{self.modules}"

    @property
    def symbol(self) -> str:
        return f"{self.letter}{self.modules}"

    def symbol_in(self, d_model: int) -> str:
        return self.symbol

    def check(self) -> None:
        if self.width % self.modules:
            raise ValueError(f"{self.kind}: {self.modules} modules do not divide the width, {self.width}")

    def _layer_params(self, inputs: int, outputs: int, bias: bool = True) -> int:
        """Of a multiplicative layer."""
        return self.modules * inputs + inputs * (outputs // self.modules) + (outputs if bias else 0)

    def params(self, d_model: int) -> int:
        projections = 3 * self._layer_params(d_model, self.width) + self._layer_params(self.width, d_model)
        return projections + self._layer_params(d_model, self.width, bias=False) + 2 * self.width + 2 * d_model

    def activations(self, d_model: int, batch: int, tgt_len: int, mem_len: int) -> int:
        """With the products of scales and shared weights, as large as the weights of dense layers."""
        return super().activations(d_model, batch, tgt_len, mem_len) + 5 * d_model * self.width
