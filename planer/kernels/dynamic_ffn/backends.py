"""Dynamically executed experts in plain PyTorch: dense with other experts masked, expert by expert, token by token.

Arguments and result of all are those of ``planer.kernels.dynamic_ffn``.

Letters in shapes: N tokens, D model width, F neurons, n experts, s = F / n neurons per expert.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from planer.kernels.activations import activate, factors, function_of
from planer.kernels.inference import Bias, with_biases


def masked_dense(x: Tensor, w1: Tensor, b1: Bias, w2: Tensor, b2: Bias, mask: Tensor, activation: str) -> Tensor:
    """All neurons, those of other experts set to zero; its time does not depend on the mask, nor does it wait."""
    hidden = activate(F.linear(x, w1, b1), activation)
    # Not a product with the mask, which would keep the NaN and infinity of neurons that a token does not execute.
    hidden.unflatten(1, (mask.shape[1], -1)).masked_fill_(~mask[:, :, None], 0)
    return F.linear(hidden, w2.t(), b2)


def loop(x: Tensor, w1: Tensor, b1: Bias, w2: Tensor, b2: Bias, mask: Tensor, activation: str) -> Tensor:
    """Each expert on the tokens that chose it, gathered and added back; good for few large experts."""
    size = w2.shape[0] // mask.shape[1]
    tokens = mask.t().nonzero()[:, 1].split(mask.sum(dim=0).tolist())
    sums = torch.promote_types(x.dtype, torch.float32)
    total = torch.zeros(x.shape, dtype=sums, device=x.device) if b2 is None else b2.to(sums).repeat(x.shape[0], 1)
    for c, rows in enumerate(tokens):
        if rows.shape[0]:
            own = slice(c * size, (c + 1) * size)
            u1, c1 = _own_rows(w1, own, activation), None if b1 is None else _own_rows(b1, own, activation)
            hidden = activate(F.linear(x.index_select(0, rows), u1, c1), activation)
            total.index_add_(0, rows, (hidden @ w2[own]).to(sums))
    return total.to(x.dtype)


def rows(x: Tensor, w1: Tensor, b1: Bias, w2: Tensor, b2: Bias, mask: Tensor, activation: str) -> Tensor:
    """Each token with the gathered rows of its neurons; good for a few tokens."""
    neurons = torch.arange(w2.shape[0], device=x.device).unflatten(0, (mask.shape[1], -1))
    outputs = []
    for row, chosen in zip(x, mask, strict=True):
        mine = neurons[chosen].flatten()
        first = torch.cat([mine + part * w2.shape[0] for part in range(factors(activation))])
        z = _affine(w1.index_select(0, first), row, None if b1 is None else b1[first])
        hidden = activate(z, activation)
        outputs.append(_affine(w2.index_select(0, mine).t(), hidden, b2))
    return torch.stack(outputs) if outputs else x.new_empty(0, w2.shape[1])


def _affine(weight: Tensor, row: Tensor, bias: Bias) -> Tensor:
    return weight @ row if bias is None else torch.addmv(bias, weight, row)


def cpp(x: Tensor, w1: Tensor, b1: Bias, w2: Tensor, b2: Bias, mask: Tensor, activation: str) -> Tensor:
    """planer/kernels/dynamic_ffn/dynamic.cpp."""
    return torch.ops.planer_cpp.dynamic_ffn(x, *with_biases(w1, b1, w2, b2), mask, function_of(activation))


def triton(x: Tensor, w1: Tensor, b1: Bias, w2: Tensor, b2: Bias, mask: Tensor, activation: str) -> Tensor:
    """planer/kernels/dynamic_ffn/triton/layer.py."""
    from planer.kernels.dynamic_ffn.triton import layer as kernels

    return kernels.forward(x, *with_biases(w1, b1, w2, b2), mask, function_of(activation))


def _own_rows(tensor: Tensor, own: slice, activation: str) -> Tensor:
    """Rows of the first weight or bias that belong to an expert: one slice, or two where the activation is gated."""
    parts = [part[own] for part in tensor.chunk(factors(activation))]
    return parts[0] if len(parts) == 1 else torch.cat(parts)
