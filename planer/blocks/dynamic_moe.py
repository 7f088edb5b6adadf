"""A dense feed-forward layer split into experts, run as far as a router finds worthwhile (D2DMoE, arXiv 2310.04361).

Letters in shapes: N tokens, D model width, F neurons, n experts, w router width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planer import specs
from planer.blocks.block import Aux, Block, Wants
from planer.initial import fan_in_uniform
from planer.kernels.dynamic_ffn import dynamic_ffn
from planer.kernels.routing import linear_fp32, threshold


class Router(nn.Module):
    """Predicts the norm of each expert's output: |V2 relu(V1 x)|, without biases, in single precision."""

    initial = {"v1": fan_in_uniform, "v2": fan_in_uniform}

    def __init__(self, d_model: int, width: int, num_experts: int):
        super().__init__()
        self.v1 = nn.Parameter(torch.zeros(width, d_model))
        self.v2 = nn.Parameter(torch.zeros(num_experts, width))

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., n]."""
        return linear_fp32(torch.relu(linear_fp32(x, self.v1)), self.v2).abs()


class DynamicMoE(nn.Module):
    """Experts whose predicted norm reaches the share ``tau`` of the token's largest run; 0 runs all, without router.

    ``tau`` starts as the specification's.
    Neuron-major weights: expert c owns rows c*s to (c+1)*s - 1 of w1, b1 and w2, s = F / n.
    Raises ValueError when the expert size does not divide the number of neurons.
    """

    dynamic = True

    def __init__(self, spec: specs.DynamicMoE, d_model: int, dropout: float):
        super().__init__()
        if spec.expert_size < 1 or spec.d_inner % spec.expert_size:
            raise ValueError(f"expert_size is {spec.expert_size}; it must divide the number of neurons, {spec.d_inner}")
        self.num_experts = spec.num_experts
        self.w1 = nn.Parameter(torch.zeros(spec.d_inner, d_model))
        self.b1 = nn.Parameter(torch.zeros(spec.d_inner))
        self.w2 = nn.Parameter(torch.zeros(spec.d_inner, d_model))
        self.b2 = nn.Parameter(torch.zeros(d_model))
        self.router = Router(d_model, spec.router_width, spec.num_experts) if spec.router_width else None
        self.dropout = nn.Dropout(dropout)
        self.tau = spec.tau

    def forward(self, x: Tensor, wants: Wants = ()) -> tuple[Tensor, Aux]:
        """[..., D] to [..., D], each position on its own; and ``inputs`` and ``executed`` where wanted."""
        aux = {"inputs": x} if "inputs" in wants else {}
        if self.tau == 0.0:
            if "executed" in wants:
                pairs = x.numel() // x.shape[-1] * self.num_experts
                aux["executed"] = x.new_full((), pairs, dtype=torch.int64)
            return self.dropout(F.linear(self.dropout(self.hidden(x)), self.w2.t(), self.b2)), aux
        if self.training:
            raise ValueError(f"tau is {self.tau}: a threshold is for inference; call eval() or set tau to 0")
        if self.router is None:
            raise ValueError(f"tau is {self.tau}, but the layer has no router; train one or set tau to 0")
        tokens = x.flatten(0, -2)
        mask = threshold(self.router_scores(tokens), self.tau)
        if "executed" in wants:
            aux["executed"] = mask.count_nonzero()
        return dynamic_ffn(tokens, self.w1, self.b1, self.w2, self.b2, mask).view_as(x), aux

    def hidden(self, x: Tensor) -> Tensor:
        """Activations after the ReLU: [..., D] to [..., F]."""
        return F.linear(x, self.w1, self.b1).relu_()

    def router_scores(self, x: Tensor) -> Tensor:
        """Predicted norm of every expert's output: [..., D] to [..., n]."""
        return self.router(x)


class DynamicMoEBlock(Block):
    """A split layer with its residual and LayerNorm."""

    compiles = False  # code would be made anew for every threshold

    def run(self, x: Tensor, wants: Wants) -> tuple[Tensor, Aux]:
        return self.sublayer(x, wants)


def build(spec: specs.DynamicMoE, shared: specs.Architecture) -> DynamicMoEBlock:
    return DynamicMoEBlock(DynamicMoE(spec, shared.d_model, shared.dropout), shared.d_model, shared.norm)
