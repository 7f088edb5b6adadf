"""Dynamically executed experts in plain PyTorch: dense with other experts masked, expert by expert, token by token.

Arguments and result of all are those of ``planer.kernels.dynamic_ffn``.

Letters in shapes: N tokens, D model width, F neurons, n experts, s = F / n neurons per expert.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def masked_dense(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, mask: Tensor) -> Tensor:
    """All neurons, those of other experts set to zero; its time does not depend on the mask, nor does it wait."""
    hidden = F.linear(x, w1, b1).relu_()
    # Not a product with the mask, which would keep the NaN and infinity of neurons that a token does not execute.
    hidden.unflatten(1, (mask.shape[1], -1)).masked_fill_(~mask[:, :, None], 0)
    return F.linear(hidden, w2.t(), b2)


def loop(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, mask: Tensor) -> Tensor:
    """Each expert on the tokens that chose it, gathered and added back; good for few large experts."""
    experts = (weight.unflatten(0, (mask.shape[1], -1)).unbind(0) for weight in (w1, b1, w2))
    tokens = mask.t().nonzero()[:, 1].split(mask.sum(dim=0).tolist())
    total = b2.to(torch.promote_types(b2.dtype, torch.float32)).repeat(x.shape[0], 1)
    for rows, u1, c1, u2 in zip(tokens, *experts, strict=True):
        if rows.shape[0]:
            hidden = F.linear(x.index_select(0, rows), u1, c1).relu_()
            total.index_add_(0, rows, (hidden @ u2).to(total.dtype))
    return total.to(b2.dtype)


def rows(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, mask: Tensor) -> Tensor:
    """Each token with the gathered rows of its neurons; good for a few tokens."""
    size = w1.shape[0] // mask.shape[1]
    neurons = torch.arange(w1.shape[0], device=x.device).unflatten(0, (mask.shape[1], size))
    outputs = []
    for row, chosen in zip(x, mask, strict=True):
        mine = neurons[chosen].flatten()
        hidden = torch.addmv(b1[mine], w1.index_select(0, mine), row).relu_()
        outputs.append(torch.addmv(b2, w2.index_select(0, mine).t(), hidden))
    return torch.stack(outputs) if outputs else x.new_empty(0, w2.shape[1])


def cpp(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, mask: Tensor) -> Tensor:
    """planer/kernels/dynamic_ffn/dynamic.cpp."""
    return torch.ops.planer_cpp.dynamic_ffn(x, w1, b1, w2, b2, mask)


def triton(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, mask: Tensor) -> Tensor:
    """planer/kernels/dynamic_ffn/triton/layer.py."""
    from planer.kernels.dynamic_ffn.triton import layer as kernels

    return kernels.forward(x, w1, b1, w2, b2, mask)
