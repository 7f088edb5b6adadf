"""LAMB against its closed form in double precision."""

import math

import pytest
import torch

from planer.training.lamb import Lamb

BETAS, EPS = (0.9, 0.999), 1e-6


def reference_step(weight, grad, state, lr, weight_decay, eps):
    """Transformer-XL's LAMB for one weight tensor, as written in the docstring of Lamb."""
    state["m"] = BETAS[0] * state.get("m", 0) + (1 - BETAS[0]) * grad
    state["s"] = BETAS[1] * state.get("s", 0) + (1 - BETAS[1]) * grad * grad
    direction = state["m"] / (state["s"].sqrt() + eps) + weight_decay * weight
    weight_norm, direction_norm = math.sqrt((weight**2).sum()), math.sqrt((direction**2).sum())
    trust = min(weight_norm, 10.0) / (direction_norm + eps) if weight_norm and direction_norm else 1.0
    return weight - lr * trust * direction


@pytest.mark.parametrize(("weight_decay", "eps"), [(0.0, EPS), (0.1, EPS), (0.0, 1e-2)])
def test_twenty_steps_equal_the_closed_form(weight_decay, eps):
    torch.manual_seed(0)
    start = [
        torch.randn(7, 5, dtype=torch.float64),  # norm below the clamp
        100 * torch.randn(40, 3, dtype=torch.float64),  # norm above it
        torch.zeros(6, dtype=torch.float64),  # a bias
        torch.randn((), dtype=torch.float64),
    ]
    params = [torch.nn.Parameter(tensor.clone()) for tensor in start]
    optimizer = Lamb(params, lr=0.1, betas=BETAS, eps=eps, weight_decay=weight_decay)
    states = [{} for _ in start]
    for step in range(20):
        optimizer.param_groups[0]["lr"] = lr = 0.1 / (1 + step)
        for i, param in enumerate(params):
            param.grad = torch.randn_like(param)
            start[i] = reference_step(start[i], param.grad, states[i], lr, weight_decay, eps)
        optimizer.step()
    for param, expected in zip(params, start, strict=True):
        torch.testing.assert_close(param.detach(), expected, rtol=1e-12, atol=1e-12)


def test_large_weights_move_by_ten_times_the_learning_rate():
    param = torch.nn.Parameter(torch.full((64, 64), 1.0, dtype=torch.float64))  # norm 64
    before = param.detach().clone()
    param.grad = torch.randn_like(param)
    Lamb([param], lr=0.01).step()
    assert (param - before).norm().item() == pytest.approx(0.1, rel=1e-6)


def test_zero_weights_and_zero_gradients_have_trust_one():
    bias, constant = torch.nn.Parameter(torch.zeros(512)), torch.nn.Parameter(torch.ones(3))
    bias.grad, constant.grad = torch.ones(512), torch.zeros(3)
    Lamb([bias, constant], lr=0.01).step()
    # m = 0.1, sqrt(s) = 0.0316, so the first step is 3.16 lr per element.
    torch.testing.assert_close(bias.detach(), torch.full((512,), -0.01 * 0.1 / (math.sqrt(0.001) + EPS)))
    assert torch.equal(constant.detach(), torch.ones(3))


def test_stacked_rows_train_like_separate_parameters():
    torch.manual_seed(1)
    rows = [scale * torch.randn(5, 4) for scale in (0.0, 0.1, 1.0, 100.0)]
    stacked, joint = (torch.nn.Parameter(torch.stack(rows)) for _ in range(2))
    stacked.stacked = True
    separate = [torch.nn.Parameter(row.clone()) for row in rows]
    optimizers = [Lamb(params, lr=0.05, weight_decay=0.01) for params in ([stacked], [joint], separate)]
    for _ in range(5):
        grad = torch.randn(4, 5, 4)
        stacked.grad, joint.grad = grad.clone(), grad.clone()
        for param, row in zip(separate, grad, strict=True):
            param.grad = row.clone()
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(stacked, torch.stack([param.detach() for param in separate]))
    assert not torch.allclose(stacked, joint)  # one norm for all rows gives another result


def test_parameters_without_gradient_do_not_change():
    used, unused = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    used.grad = torch.ones(3)
    optimizer = Lamb([used, unused], lr=0.1, weight_decay=0.5)
    optimizer.step()
    assert torch.equal(unused.detach(), torch.ones(3)) and unused not in optimizer.state
    assert not torch.equal(used.detach(), torch.ones(3))
    used.grad = None
    optimizer.step()  # no parameter has a gradient


def test_groups_have_their_own_settings():
    params = [torch.nn.Parameter(torch.ones(4)) for _ in range(2)]
    for param in params:
        param.grad = torch.ones(4)
    Lamb([{"params": [params[0]], "lr": 0.0}, {"params": [params[1]]}], lr=0.1).step()
    assert torch.equal(params[0].detach(), torch.ones(4))
    assert (params[1] < 1).all()
