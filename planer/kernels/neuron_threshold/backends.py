"""Layers that compute only neurons over a threshold: all by dense products, or those that run in C++ and in Triton.

Arguments and results are those of ``planer.kernels.neuron_threshold``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from planer.kernels.activations import activate, function_of
from planer.kernels.inference import Bias, with_biases


def masked_dense(
    x: Tensor, w1: Tensor, b1: Bias, w2: Tensor, b2: Bias, limits: Tensor, score: str, activation: str
) -> tuple[Tensor, Tensor]:
    """All neurons, those that do not run set to zero; its time does not depend on how many run, nor does it wait."""
    neurons = w2.shape[0]
    z, *other = F.linear(x, w1, b1).split(neurons, dim=-1)
    value = activate(z, function_of(activation))
    h = value * other[0] if other else value
    compared = value if score == "gate" else h
    dropped = compared.abs() <= limits  # NaN runs
    y = F.linear(h.masked_fill(dropped, 0), w2.t(), b2)
    return y, neurons - dropped.sum(-1)


def fused(
    x: Tensor, w1: Tensor, b1: Bias, w2: Tensor, b2: Bias, limits: Tensor, score: str, activation: str
) -> tuple[Tensor, Tensor]:
    """As masked_dense; what is between the products is one pass over memory in C++."""
    z = F.linear(x, w1, b1)
    early = score == "gate"
    h, executed = torch.ops.planer_cpp.threshold_hidden(z, limits, early, function_of(activation))
    return F.linear(h, w2.t(), b2), executed


def cpp(
    x: Tensor, w1: Tensor, b1: Bias, w2: Tensor, b2: Bias, limits: Tensor, score: str, activation: str
) -> tuple[Tensor, Tensor]:
    """planer/kernels/neuron_threshold/threshold.cpp."""
    early = score == "gate"
    layer = with_biases(w1, b1, w2, b2)
    return torch.ops.planer_cpp.neuron_threshold(x, *layer, limits, early, function_of(activation))


def triton(
    x: Tensor, w1: Tensor, b1: Bias, w2: Tensor, b2: Bias, limits: Tensor, score: str, activation: str
) -> tuple[Tensor, Tensor]:
    """planer/kernels/neuron_threshold/triton/layer.py."""
    from planer.kernels.neuron_threshold.triton import layer as kernels

    layer = with_biases(w1, b1, w2, b2)
    return kernels.forward(x, *layer, limits.float(), score == "gate", function_of(activation))
