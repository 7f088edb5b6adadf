"""Activations of feed-forward layers, and their gradients, in PyTorch.

A gated activation takes twice as many values as it gives: the first half is the gate.  Its first weight matrix has the
rows of the gate, then those of the other factor.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "silu", "swiglu")
"""gelu with the error function, gelu_tanh its approximation, swiglu silu(gate) times the other factor."""
GATED = {"swiglu": "silu"}
"""Of gated activations, the function that acts on the gate."""
APPROXIMATION = {"gelu": "none", "gelu_tanh": "tanh"}


def check_activation(operation: str, activation: str) -> None:
    """Raise ValueError for an activation that is none of ACTIVATIONS; the message begins with the operation's name."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"{operation}: activation is {activation!r}; allowed: {', '.join(ACTIVATIONS)}")


def factors(activation: str) -> int:
    """Values before the activation per neuron: 2 for a gated activation, else 1."""
    return 2 if activation in GATED else 1


def function_of(activation: str) -> str:
    """What compiled kernels are told: the function without the gate, which shows in the weights' shapes."""
    return GATED.get(activation, activation)


def activate(z: Tensor, activation: str) -> Tensor:
    """[..., factors I] to [..., I].  ReLU overwrites z."""
    if activation == "relu":
        return F.relu_(z)
    if activation == "silu":
        return F.silu(z)
    if activation in GATED:
        gate, up = z.chunk(2, dim=-1)
        return activate(gate, GATED[activation]) * up
    return F.gelu(z, approximate=APPROXIMATION[activation])


def through_activation(grad: Tensor, z: Tensor, activation: str) -> Tensor:
    """From the gradient of the activation's result [..., I] to that of z, of its shape.

    For ReLU z may also be what it gave.
    """
    if activation == "relu":
        return torch.ops.aten.threshold_backward(grad, z, 0)
    if activation == "silu":
        return torch.ops.aten.silu_backward(grad, z)
    if activation in GATED:
        gate, up = z.chunk(2, dim=-1)
        function = GATED[activation]
        return torch.cat((through_activation(grad * up, gate, function), grad * activate(gate, function)), dim=-1)
    return torch.ops.aten.gelu_backward(grad, z, approximate=APPROXIMATION[activation])
