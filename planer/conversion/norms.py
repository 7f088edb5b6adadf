"""Norms of the experts' outputs without the outputs (D2DMoE, arXiv 2310.04361, eq. 3: what routers predict).

With the hidden activations h_c of an expert and G_c = W2_c W2_c^T, [s, s],

    ||E_c(x)|| = ||W2_c^T h_c|| = sqrt(h_c^T G_c h_c)

which takes s instead of D multiply-adds per activation, and no memory for N x n x D outputs.  A gated layer differs in
h_c alone.
Letters in shapes: N tokens, D model width, F neurons, n experts, s = F / n neurons per expert.
"""

from __future__ import annotations

import torch
from torch import Tensor


def output_gram(w2: Tensor, num_experts: int) -> Tensor:
    """G_c of every expert: w2 [F, D] to [n, s, s], in at least single precision, also under autocast."""
    w2 = w2.detach()
    w2 = w2.to(torch.promote_types(w2.dtype, torch.float32)).unflatten(0, (num_experts, -1))
    with torch.autocast(w2.device.type, enabled=False):
        return w2 @ w2.mT


@torch.no_grad()
def expert_norms(hidden: Tensor, gram: Tensor) -> Tensor:
    """Norm of each expert's part of the output, without b2: hidden [N, F] and gram [n, s, s] to [N, n]."""
    with torch.autocast(hidden.device.type, enabled=False):
        by_expert = hidden.to(gram.dtype).unflatten(-1, (len(gram), -1)).transpose(0, 1)  # [n, N, s]
        return (by_expert @ gram).mul_(by_expert).sum(-1).clamp_(min=0).sqrt_().t()
