"""Activations of feed-forward layers, and their gradients, in PyTorch.

A gated activation takes twice as many values as it gives: the first half is the gate.  Its first weight matrix has the
rows of the gate, then those of the other factor.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

GATED = {"reglu": "relu", "geglu": "gelu", "geglu_tanh": "gelu_tanh", "swiglu": "silu"}
"""Of gated activations, the function that acts on the gate; its result is multiplied by the other factor."""
ALL = (*GATED.values(), *GATED)
"""gelu with the error function, gelu_tanh its approximation."""
ACTIVATIONS = (*GATED.values(), "swiglu")
"""Those that expert_ffn has too: it keeps ReLU's result in the place of its argument, which a gate does not allow."""
APPROXIMATION = {"gelu": "none", "gelu_tanh": "tanh"}


def check_activation(operation: str, activation: str, allowed: tuple[str, ...] = ACTIVATIONS) -> None:
    """Raise ValueError for an activation that is not allowed; the message begins with the operation's name."""
    if activation not in allowed:
        raise ValueError(f"{operation}: activation is {activation!r}; allowed: {', '.join(allowed)}")


def factors(activation: str) -> int:
    """Values before the activation per neuron: 2 for a gated activation, else 1."""
    return 2 if activation in GATED else 1


def function_of(activation: str) -> str:
    """What compiled kernels are told: the function without the gate, which shows in the weights' shapes."""
    return GATED.get(activation, activation)


def gated(function: str) -> str:
    """The gated activation whose gate has this function."""
    return next(name for name, of_gate in GATED.items() if of_gate == function)


def activate(z: Tensor, activation: str) -> Tensor:
    """[..., factors I] to [..., I].  ReLU without a gate overwrites z."""
    if activation == "relu":
        return F.relu_(z)
    if activation == "silu":
        return F.silu(z)
    if activation in GATED:
        gate, up = z.chunk(2, dim=-1)
        return _of_gate(gate, GATED[activation]) * up
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
        return torch.cat((through_activation(grad * up, gate, function), grad * _of_gate(gate, function)), dim=-1)
    return torch.ops.aten.gelu_backward(grad, z, approximate=APPROXIMATION[activation])


def _of_gate(gate: Tensor, function: str) -> Tensor:
    """The gate's factor; ReLU does not overwrite it, since it is a view of all values."""
    return F.relu(gate) if function == "relu" else activate(gate, function)
