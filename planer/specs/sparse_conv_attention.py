"""Attention with one multiplicative projection and convolutions: ``c16`` (Sparse is Enough, arXiv 2111.12763)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from planer.specs.sparse_attention import SparseAttention

LENGTH = 3
"""Positions that a convolution sees: its own and those before it."""
WIDTH = 3
"""Neighbouring modules that the convolutions of queries and keys see."""
LOOKBACK = LENGTH - 1


@dataclass(frozen=True)
class SparseConvAttention(SparseAttention):
    """Relative attention with all heads, without an output projection.

    One multiplicative layer serves queries, keys and values, which are convolutions of its outputs.
    """

    kind: ClassVar[str] = "sparse_conv_attention"
    label: ClassVar[str] = "sparse attention with convolutions"
    colour: ClassVar[str] = "#5d3a9b"
    text_colour: ClassVar[str] = "#ffffff"
    options: ClassVar[tuple[str, ...]] = ("sparse_conv_attention_<modules>",)
    starts_from: ClassVar[str] = ""
    letter: ClassVar[str] = "c"

    @property
    def _module(self) -> int:
        """Width of a module."""
        return self.width // self.modules

    def params(self, d_model: int) -> int:
        taps = LENGTH * (2 * WIDTH + 1)
        convolutions = taps * self._module**2 + 3 * self._module
        projections = self._layer_params(d_model, self.width) + self._layer_params(d_model, self.width, bias=False)
        return projections + convolutions + 2 * self.width + 2 * d_model

    def _projection_flops(self, d_model: int, tgt_len: int, mem_len: int, attention: str) -> float:
        keys = tgt_len + mem_len
        read, projected = ((keys + LOOKBACK) / tgt_len, keys / tgt_len) if attention == "recompute" else (1, 1)
        tap = 2 * LENGTH * self.width * self._module
        return 2 * d_model * self.width * read + tap * (WIDTH + (WIDTH + 1) * projected)

    def activations(self, d_model: int, batch: int, tgt_len: int, mem_len: int) -> int:
        """Inputs and outputs of the convolutions beside what attention keeps."""
        images = batch * 3 * (tgt_len + mem_len + LOOKBACK) * self.width
        return super().activations(d_model, batch, tgt_len, mem_len) + images
