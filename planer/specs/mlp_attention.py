"""Attention whose projections were replaced by MLPs: ``p8`` with 8 heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from planer.specs.attention import Attention
from planer.specs.block import Backbone, BlockSpec, Size

PROJECTIONS = ("query", "key", "value", "output")
"""Names of the MLPs."""


@dataclass(frozen=True)
class MlpAttention(Attention):
    """Relative attention with an MLP of ``neurons`` hidden neurons, and biases, for each of queries, keys, values and
    output (planer/conversion/own_projections.py makes it)."""

    neurons: Size
    kind: ClassVar[str] = "mlp_attention"
    label: ClassVar[str] = "attention with MLPs"
    colour: ClassVar[str] = "#004c72"
    options: ClassVar[tuple[str, ...]] = ()
    shared_under: ClassVar[tuple[str, ...]] = ()
    projects: ClassVar[bool] = False
    splits: ClassVar[bool] = True

    @classmethod
    def parse(cls, option: str, backbone: Backbone) -> None:
        return None

    @classmethod
    def symbols(cls, backbone: Backbone) -> dict[str, BlockSpec]:
        return {}

    @property
    def name(self) -> str:
        return self.kind

    @property
    def symbol(self) -> str:
        return f"p{self.num_heads}"

    def symbol_in(self, d_model: int) -> str:
        return self.symbol

    def split(self, expert_size: int) -> BlockSpec:
        from planer.specs.dynamic_mlp_attention import DynamicMlpAttention  # it imports this module

        return DynamicMlpAttention(self.num_heads, self.d_head, self.neurons, expert_size)

    def params(self, d_model: int) -> int:
        matrices = 4 * self.neurons * (d_model + self.width) + d_model * self.width
        return matrices + 4 * self.neurons + 3 * self.width + d_model + 2 * self.width + 2 * d_model

    def _projection_flops(self, d_model: int, tgt_len: int, mem_len: int, attention: str) -> float:
        projected = (tgt_len + mem_len) / tgt_len if attention == "recompute" else 1
        return 4 * self.neurons * (d_model + self.width) * (1 + projected)

    def activations(self, d_model: int, batch: int, tgt_len: int, mem_len: int) -> int:
        hidden = batch * (2 * tgt_len + 2 * (tgt_len + mem_len)) * self.neurons
        return super().activations(d_model, batch, tgt_len, mem_len) + hidden
