"""The definition of expert_ffn: the oracle of the tests."""

from __future__ import annotations

import torch
from torch import Tensor

from planer.kernels.activations import activate
from planer.kernels.inference import Bias
from planer.kernels.routing import Pairs


def expert_ffn_reference(
    x: Tensor, w1: Tensor, b1: Bias, w2: Tensor, b2: Bias, pairs: Pairs, activation: str = "relu"
) -> Tensor:
    """The definition, one pair at a time, in the precision of its arguments."""
    total = [torch.zeros_like(row) for row in x]
    for p, (t, e) in enumerate(zip(pairs.token.tolist(), pairs.expert.tolist(), strict=True)):
        z = w1[e] @ x[t] if b1 is None else w1[e] @ x[t] + b1[e]
        hidden = activate(z, activation)
        y = w2[e] @ hidden if b2 is None else w2[e] @ hidden + b2[e]
        total[t] = total[t] + (y if pairs.gate is None else pairs.gate[p] * y)
    return torch.stack(total) if total else torch.zeros_like(x)
