"""Mixtures of experts: ``m2`` with two experts per token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from planer.parsing import show
from planer.specs.block import Backbone, BlockSpec, Size, number_after


@dataclass(frozen=True)
class MoE(BlockSpec):
    """num_experts feed-forward layers, of which a softmax router without bias picks top_k per token."""

    d_inner: Size
    num_experts: Size
    top_k: Size
    kind: ClassVar[str] = "moe"
    label: ClassVar[str] = "mixture of experts"
    colour: ClassVar[str] = "#009e73"
    options: ClassVar[tuple[str, ...]] = ("moe_top<k>",)
    starts_from: ClassVar[str] = "feed_forward"
    shared_under: ClassVar[tuple[str, ...]] = ("all",)
    routes: ClassVar[bool] = True

    @classmethod
    def parse(cls, option: str, backbone: Backbone) -> MoE | None:
        if (top_k := number_after("moe_top", option)) is None:
            return None
        if not 1 <= top_k <= backbone.num_experts:
            allowed = f"1 to {backbone.num_experts}, the number of experts"
            raise ValueError(f"{show(option)} has top_k {top_k}; allowed: {allowed}")
        return cls(backbone.d_inner, backbone.num_experts, top_k)

    @classmethod
    def symbols(cls, backbone: Backbone) -> dict[str, MoE]:
        top_ks = range(1, backbone.num_experts + 1)
        return {f"m{top_k}": cls(backbone.d_inner, backbone.num_experts, top_k) for top_k in top_ks}

    @classmethod
    def option_label(cls, number: int) -> str:
        return f"mixture of experts, top {number}"

    @property
    def name(self) -> str:
        return f"moe_top{self.top_k}"

    @property
    def symbol(self) -> str:
        return f"m{self.top_k}"

    @property
    def size(self) -> int:
        return self.top_k

    def check(self) -> None:
        if self.top_k > self.num_experts:
            raise ValueError(f"moe.top_k is {self.top_k}, more than its {self.num_experts} experts")

    def shapes(self) -> dict[str, int]:
        return {"d_inner": self.d_inner, "num_experts": self.num_experts}

    def _expert_params(self, d_model: int) -> int:
        return 2 * d_model * self.d_inner + self.d_inner + d_model

    def params(self, d_model: int) -> int:
        return self.num_experts * (self._expert_params(d_model) + d_model) + 2 * d_model

    def active_params(self, d_model: int) -> int:
        return self.top_k * self._expert_params(d_model) + self.num_experts * d_model + 2 * d_model

    def flops(self, d_model: int, batch: int, tgt_len: int, mem_len: int, attention: str) -> float:
        return self.top_k * 4 * d_model * self.d_inner + 2 * d_model * self.num_experts

    def activations(self, d_model: int, batch: int, tgt_len: int, mem_len: int) -> int:
        """Every token is kept once for each of its experts."""
        return batch * tgt_len * (4 * d_model + self.top_k * (2 * d_model + 2 * self.d_inner) + self.num_experts)
