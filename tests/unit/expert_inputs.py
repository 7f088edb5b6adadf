"""Random inputs and weights of expert feed-forward layers."""

from __future__ import annotations

import torch

from planer.kernels.activations import factors

D, NEURONS = 12, 20


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def inputs(tokens, num_experts, width=D, neurons=NEURONS, bias=True, activation="relu"):
    """x, w1, b1, w2, b2, scaled so that outputs are about 1."""
    rows = factors(activation) * neurons
    return [
        draw(tokens, width, seed=1),
        draw(num_experts, rows, width, seed=2) / width**0.5,
        draw(num_experts, rows, seed=3) if bias else None,
        draw(num_experts, width, neurons, seed=4) / neurons**0.5,
        draw(num_experts, width, seed=5) if bias else None,
    ]
