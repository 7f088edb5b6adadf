"""The router of a mixture of experts: which experts each token meets, with what weight, and in what order.

Letters in shapes: N tokens, D model width, E experts, k experts per token, P pairs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from planer.kernels import triton
from planer.kernels.routing.pairs import Pairs, top_k
from planer.kernels.routing.plan import Plan, plan

MOST_EXPERTS = 128
"""Of the fused gate, which has a row of logits in registers."""


def route(x: Tensor, weight: Tensor, k: int, probabilities: bool) -> tuple[Pairs, Tensor | None, Plan]:
    """Give every token its k best experts by the logits x weight^T.

    x: [N, D]; weight: [E, D].  Returns the pairs, the softmax probabilities [N, E] if asked for, and the pairs' plan.
    Logits are computed in at least single precision and without autocast; gates and ties are as ``top_k`` says.  The
    fused gate has no TF32; elsewhere PyTorch's setting for products decides, which is off by default.
    """
    wanted = probabilities or torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    if wanted or not _fused(x, weight, k):
        pairs, shares = top_k(linear_fp32(x, weight), k)
        return pairs, shares if probabilities else None, plan(pairs)
    expert, gate, token, *fields = _route_on_gpu(x.contiguous(), weight.contiguous(), k)
    return Pairs(token, expert, gate, x.shape[0], weight.shape[0], k), None, Plan(*fields)


def _fused(x: Tensor, weight: Tensor, k: int) -> bool:
    num_experts = weight.shape[0]
    same = x.dtype == weight.dtype and x.dtype in triton.DTYPES
    return triton.AVAILABLE and x.is_cuda and same and x.shape[0] > 0 and 1 <= k <= num_experts <= MOST_EXPERTS


# An operator, because torch.compile cannot look into what launches kernels.
@torch.library.custom_op("planer::route", mutates_args=())
def _route_on_gpu(
    x: Tensor, weight: Tensor, k: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    from planer.kernels.routing.triton.gate import gate

    return gate(x, weight, k)


@_route_on_gpu.register_fake
def _(x, weight, k):
    tokens, experts = x.shape[0], weight.shape[0]
    expert, token, order, inverse, sorted_token = (x.new_empty(tokens * k, dtype=torch.int64) for _ in range(5))
    gate = x.new_empty(tokens * k, dtype=torch.float32)
    offsets, token_offsets = (x.new_empty(n + 1, dtype=torch.int64) for n in (experts, tokens))
    return expert, gate, token, order, inverse, sorted_token, offsets, token_offsets


@register_flop_formula(torch.ops.planer.route)
def _flops(x, weight, k, *_, **__) -> int:
    """Those of the logits."""
    return 2 * x[0] * x[1] * weight[0]


def linear_fp32(x: Tensor, weight: Tensor) -> Tensor:
    """x weight^T in at least single precision, whatever the autocast: routers decide discretely (Switch, section 2.4).

    x: [..., D]; weight: [O, D].  Returns [..., O].
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    x, weight = x.to(dtype), weight.to(dtype)
    if not torch.is_autocast_enabled(x.device.type):
        return F.linear(x, weight)
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x, weight)
