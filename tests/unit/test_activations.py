"""Activations equal their formulas, and their gradients automatic differentiation."""

from __future__ import annotations

import pytest
import torch
from numerics import FORMULAS

from planer.kernels.activations import ALL, activate, check_activation, factors, through_activation


@pytest.mark.parametrize("activation", ALL)
def test_values_and_gradients(activation):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(5, 3 * factors(activation), dtype=torch.float64, generator=generator).requires_grad_()
    grad = torch.randn(5, 3, dtype=torch.float64, generator=generator)
    expected = FORMULAS[activation](z)
    torch.testing.assert_close(activate(z.detach().clone(), activation), expected.detach(), rtol=1e-12, atol=1e-12)
    (exact,) = torch.autograd.grad(expected, z, grad)
    torch.testing.assert_close(through_activation(grad, z.detach(), activation), exact, rtol=1e-12, atol=1e-12)


def test_an_unknown_activation_is_named():
    with pytest.raises(ValueError, match="expert_ffn: activation is 'tanh'; allowed: relu, gelu, gelu_tanh, silu, swi"):
        check_activation("expert_ffn", "tanh")
