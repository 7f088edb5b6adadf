"""The learning rate schedule."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from planer.config import OptimizerConfig
from planer.training.schedule import learning_rate

CONFIG = OptimizerConfig("lamb", 0.01, 0.001, 1000, (0.9, 0.999), 1e-6, 0.0, 0.25)


def with_warmup(steps: int) -> OptimizerConfig:
    return dataclasses.replace(CONFIG, warmup_steps=steps)


@pytest.mark.parametrize(
    "step, expected",
    [(1, 1e-5), (500, 5e-3), (1000, 1e-2), (20500, 5.5e-3), (40000, 1e-3), (13000 + 1000, 0.00775)],
)
def test_values_of_the_wikitext_schedule(step, expected):
    assert learning_rate(step, CONFIG, 40_000) == pytest.approx(expected, rel=1e-12)


def test_the_cosine_equals_pytorchs():
    param = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([param], lr=0.01)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=200, eta_min=0.001)
    for step in range(1, 201):
        optimizer.step()
        scheduler.step()
        assert learning_rate(step, with_warmup(0), 200) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-9)


@pytest.mark.parametrize(
    "warmup, total, expected",
    [
        (0, 2, [0.0055, 0.001]),
        (0, 1, [0.001]),
        (1, 2, [0.01, 0.001]),
        (2, 2, [0.005, 0.01]),  # only warm-up
        (4, 2, [0.0025, 0.005]),  # ends before the peak
    ],
)
def test_short_runs(warmup, total, expected):
    rates = [learning_rate(step, with_warmup(warmup), total) for step in range(1, total + 1)]
    assert rates == pytest.approx(expected, rel=1e-12)


@given(warmup=st.integers(0, 60), total=st.integers(1, 50))
def test_the_rate_rises_and_falls_within_bounds(warmup, total):
    rates = [learning_rate(step, with_warmup(warmup), total) for step in range(1, total + 1)]
    rising, falling = rates[:warmup], rates[max(warmup - 1, 0) :]
    assert rising == sorted(rising) and falling == sorted(falling, reverse=True)
    assert all(0 < rate <= CONFIG.lr * (1 + 1e-12) for rate in rates)
    assert all(rate >= CONFIG.lr_min for rate in rates[warmup:])
    assert total <= warmup or math.isclose(rates[-1], CONFIG.lr_min)


@pytest.mark.parametrize("step", [0, 11])
def test_steps_outside_the_run_are_refused(step):
    with pytest.raises(ValueError, match="outside 1 to 10"):
        learning_rate(step, CONFIG, 10)
