"""A dense feed-forward layer split into experts, of which each token executes its own subset.

Weights are neuron-major: row j of w1 and row j of w2 belong to neuron j, and expert c owns rows c*s to (c+1)*s - 1.
One layout serves every expert size, and the whole layer is an ordinary dense layer when all experts run.

Letters in shapes: N tokens, D model width, F neurons, n experts, s = F / n neurons per expert.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ROW_COST = 16
"""Gathering a token's row for an expert and adding the result back costs as much as this many neurons."""
START_COST = 2**19
"""Starting one expert costs as much as this many multiply-adds of each of the two products.

Both fitted to dense and gathered times in float32 on one Cascade Lake core: N in 64 and 1024, (D, F) in (128, 512) and
(512, 2048), s from 4 to 128, executed share from 0.02 to 0.6.
"""


def dynamic_ffn(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, mask: Tensor) -> Tensor:
    """Sum the chosen experts of every token: y = b2 + sum over chosen c of w2_c^T relu(w1_c x + b1_c).

    x: [N, D]; w1: [F, D]; b1: [F]; w2: [F, D]; b2: [D]; mask: [N, n] bool.  Returns [N, D].

    On a CPU, few chosen neurons are computed expert by expert on the tokens that chose them; many, and all on a GPU,
    by the dense layer with the hidden neurons of other experts set to zero.
    """
    if not mask.is_cuda:
        counts = mask.sum(dim=0).tolist()
        if gathering_pays(counts, x.shape, w1.shape[0]):
            return _gathered(x, w1, b1, w2, b2, mask, counts)
    return _masked_dense(x, w1, b1, w2, b2, mask)


def gathering_pays(counts: list[int], shape: tuple[int, int], neurons: int) -> bool:
    """Whether going expert by expert beats the dense layer; counts: tokens of each expert, shape: (N, D)."""
    num_tokens, d_model = shape
    expert_size = neurons // len(counts)
    started = sum(count > 0 for count in counts)
    gathered = sum(counts) * (expert_size + ROW_COST) * d_model + started * START_COST
    return gathered < num_tokens * neurons * d_model


def _masked_dense(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, mask: Tensor) -> Tensor:
    hidden = F.linear(x, w1, b1).relu_().unflatten(1, (mask.shape[1], -1)) * mask[:, :, None]
    return F.linear(hidden.flatten(1), w2.t(), b2)


def _gathered(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, mask: Tensor, counts: list[int]) -> Tensor:
    split = (weight.unflatten(0, (len(counts), -1)).unbind(0) for weight in (w1, b1, w2))
    tokens = mask.t().nonzero()[:, 1].split(counts)
    total = b2.to(torch.promote_types(b2.dtype, torch.float32)).repeat(x.shape[0], 1)
    for rows, u1, c1, u2 in zip(tokens, *split, strict=True):
        if rows.shape[0]:
            hidden = F.linear(x.index_select(0, rows), u1, c1).relu_()
            total.index_add_(0, rows, (hidden @ u2).to(total.dtype))
    return total.to(b2.dtype)


def dynamic_ffn_reference(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, mask: Tensor) -> Tensor:
    """The definition, one token and expert at a time: the oracle of the tests, in the precision of its arguments."""
    size = w1.shape[0] // mask.shape[1]
    total = []
    for row, chosen in zip(x, mask.tolist(), strict=True):
        y = b2
        for c in [c for c, executed in enumerate(chosen) if executed]:
            neurons = slice(c * size, (c + 1) * size)
            y = y + torch.relu(w1[neurons] @ row + b1[neurons]) @ w2[neurons]
        total.append(y)
    return torch.stack(total)
