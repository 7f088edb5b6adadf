"""The definition of neuron_threshold: the oracle of the tests."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from planer.kernels.activations import activate, factors, function_of
from planer.kernels.inference import Bias


def neuron_threshold_reference(
    x: Tensor,
    w1: Tensor,
    b1: Bias,
    w2: Tensor,
    b2: Bias,
    limits: Tensor,
    score: str = "product",
    activation: str = "relu",
) -> tuple[Tensor, Tensor]:
    """The definition, one token at a time, in the precision of its arguments."""
    outputs, counts = [], []
    for row in x:
        z = F.linear(row, w1, b1).view(factors(activation), -1)
        value = activate(z[0].clone(), function_of(activation))
        h = value * z[1] if len(z) == 2 else value
        compared = value if score == "gate" else h
        executed = ((compared.abs() > limits) | compared.isnan()).nonzero().flatten()
        y = h[executed] @ w2[executed]
        outputs.append(y if b2 is None else y + b2)
        counts.append(len(executed))
    y = torch.stack(outputs) if outputs else torch.zeros_like(x)
    return y, torch.tensor(counts, dtype=torch.int64, device=x.device)
