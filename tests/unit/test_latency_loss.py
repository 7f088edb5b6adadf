"""The latency loss: switch, hinge and dual."""

from __future__ import annotations

import pytest
import torch

from planer.search.latency_loss import HINGE_WIDTH, LatencyLoss

CPU = torch.device("cpu")


def loss_of(kind: str, weight: float = 3.0) -> LatencyLoss:
    """Options of 0, 2 and 4 ms, 1 ms for embedding and head, a budget of half of 20 ms."""
    return LatencyLoss([0.0, 2.0, 4.0], 1.0, 20.0, 0.5, kind, weight, CPU)


def mixture(share: float) -> torch.Tensor:
    """Five equal positions that take, with embedding and head, this share of the budget."""
    level = (10.0 * share - 1.0) / 5
    return torch.tensor([[1 - level / 4, 0.0, level / 4]]).repeat(5, 1).requires_grad_()


@pytest.mark.parametrize("share, beta", [(1.001, 3.0), (0.999, 0.0)])
def test_the_switch_is_on_above_the_target_only(share, beta):
    latency = loss_of("switch")
    penalty, ratio, seen = latency(mixture(share))
    assert latency.expected_ms(mixture(share)).item() == pytest.approx(10.0 * share)
    assert ratio.item() == pytest.approx(share)
    assert seen.item() == beta and penalty.item() == pytest.approx(beta * share)


@pytest.mark.parametrize("kind", ["switch", "hinge", "dual"])
@pytest.mark.parametrize("share", [0.6, 0.97, 1.03, 1.5])
def test_beta_is_the_slope_of_the_loss(kind, share):
    latency, mixed = loss_of(kind), mixture(share)
    latency.multiplier.fill_(0.7)
    penalty, _, beta = latency(mixed)
    (slope,) = torch.autograd.grad(penalty, mixed)
    torch.testing.assert_close(slope, (beta * latency.option_ms / 10.0).expand(5, 3))


def test_the_hinge_is_smooth_around_the_target():
    betas = [loss_of("hinge")(mixture(share))[2].item() for share in (0.5, 0.95, 1.0, 1.05, 1.5)]
    assert betas == sorted(betas)
    assert betas[0] == pytest.approx(0.0, abs=1e-3) and betas[2] == pytest.approx(1.5) and betas[4] > 2.999
    far = loss_of("hinge")(mixture(1.5))[0].item()
    assert far == pytest.approx(3.0 * 0.5, abs=3 * HINGE_WIDTH * 1e-3)  # the plain hinge


def test_dual_ascent_converges_to_the_multiplier_of_the_constraint():
    """Minimise (x - 2)^2 with x <= 1, x the expected latency over the budget: the multiplier is 2."""
    latency = LatencyLoss([0.0, 20.0], 0.0, 20.0, 0.5, "dual", 0.1, CPU)
    probability = torch.tensor([[0.9, 0.1]], requires_grad=True)
    for _ in range(2000):
        penalty, ratio, _ = latency(probability)
        (gradient,) = torch.autograd.grad((ratio - 2) ** 2 + penalty, probability)
        with torch.no_grad():
            probability[0, 1] -= 0.01 * gradient[0, 1]
    assert ratio.item() == pytest.approx(1.0, abs=1e-2)
    assert latency.multiplier.item() == pytest.approx(2.0, abs=2e-2)


def test_the_multiplier_never_rewards_latency():
    latency = loss_of("dual")
    for _ in range(3):
        assert latency(mixture(0.5))[2].item() == 0.0
    assert latency.multiplier.item() == 0.0
    latency(mixture(2.0))
    assert latency.multiplier.item() == pytest.approx(3.0)
