"""Dense layers that conversion split into experts: ``d16`` of 16 neurons each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from planer.parsing import Range
from planer.specs.block import BlockSpec, Size
from planer.specs.feed_forward import FeedForward


@dataclass(frozen=True)
class DynamicMoE(BlockSpec):
    """A dense feed-forward layer split into experts of expert_size neurons, with a norm-regressing router.

    router_width 0: a layer that has no router yet.  tau: the threshold that the layer runs at; 0 runs all experts.
    """

    d_inner: Size
    expert_size: Size
    router_width: Annotated[int, Range(0, 2**24)] = 0
    tau: Annotated[float, Range(0, 1)] = 0.0
    kind: ClassVar[str] = "dynamic_moe"
    label: ClassVar[str] = "converted layer"
    colour: ClassVar[str] = "#cc79a7"
    text_colour: ClassVar[str] = "#231a05"
    dynamic: ClassVar[bool] = True

    @property
    def symbol(self) -> str:
        return f"d{self.expert_size}"

    @property
    def num_experts(self) -> int:
        """How many experts the dense layer was split into."""
        return self.d_inner // self.expert_size

    def check(self) -> None:
        if self.d_inner % self.expert_size:
            raise ValueError(f"dynamic_moe: {self.expert_size} does not divide d_inner, {self.d_inner}")

    def layers(self, reads: float = 1.0) -> dict[str, tuple[DynamicMoE, float]]:
        return {"": (self, 1.0)}

    def unconverted_flops(self, d_model: int, reads: float = 1.0) -> float:
        return 4 * d_model * self.d_inner

    def router_params(self, d_model: int) -> int:
        return self.router_width * (d_model + self.num_experts)

    def params(self, d_model: int) -> int:
        return FeedForward(self.d_inner).params(d_model) + self.router_params(d_model)

    def flops(self, d_model: int, batch: int, tgt_len: int, mem_len: int, attention: str) -> float:
        """All experts and the router; the dynamic-k sweep counts what a threshold really executes."""
        return self.unconverted_flops(d_model) + 2 * self.router_params(d_model)

    def activations(self, d_model: int, batch: int, tgt_len: int, mem_len: int) -> int:
        return batch * tgt_len * (4 * d_model + 2 * self.d_inner + self.router_width + self.num_experts)
