"""Attention whose projections are MLPs that conversion split into experts: ``e8`` with 8 heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from planer.parsing import Range
from planer.specs.block import Size
from planer.specs.dynamic_moe import DynamicMoE
from planer.specs.mlp_attention import PROJECTIONS, MlpAttention


@dataclass(frozen=True)
class DynamicMlpAttention(MlpAttention):
    """Each MLP is a DynamicMoE of its neurons; the fields are those of both.  As wide as the network."""

    expert_size: Size
    router_width: Annotated[int, Range(0, 2**24)] = 0
    tau: Annotated[float, Range(0, 1)] = 0.0
    kind: ClassVar[str] = "dynamic_mlp_attention"
    label: ClassVar[str] = "converted attention"
    colour: ClassVar[str] = "#8a3a6b"
    splits: ClassVar[bool] = False
    dynamic: ClassVar[bool] = True

    @property
    def symbol(self) -> str:
        return f"e{self.num_heads}"

    def check(self) -> None:
        self.mlp.check()

    @property
    def mlp(self) -> DynamicMoE:
        """In the place of each projection."""
        return DynamicMoE(self.neurons, self.expert_size, self.router_width, self.tau)

    def layers(self, reads: float = 1.0) -> dict[str, tuple[DynamicMoE, float]]:
        return {f"_{name}": (self.mlp, reads if name in ("key", "value") else 1.0) for name in PROJECTIONS}

    def unconverted_flops(self, d_model: int, reads: float = 1.0) -> float:
        return 4 * d_model * self.width * (1 + reads)

    def params(self, d_model: int) -> int:
        return super().params(d_model) + len(PROJECTIONS) * self.mlp.router_params(d_model)

    def _projection_flops(self, d_model: int, tgt_len: int, mem_len: int, attention: str) -> float:
        reads = (tgt_len + mem_len) / tgt_len if attention == "recompute" else 1
        return sum(mlp.flops(d_model, 1, 1, 0, attention) * passes for mlp, passes in self.layers(reads).values())

    def activations(self, d_model: int, batch: int, tgt_len: int, mem_len: int) -> int:
        routing = batch * (2 * tgt_len + 2 * (tgt_len + mem_len)) * (self.router_width + self.mlp.num_experts)
        return super().activations(d_model, batch, tgt_len, mem_len) + routing
