"""The plan of phase 1: weights, text and temperature of every step."""

from __future__ import annotations

import math

import pytest
from small_search import Parts

from planer.errors import UserError
from planer.search.phase1 import SearchTask


def task_of(**changes) -> SearchTask:
    return Parts(**changes).task


@pytest.mark.parametrize(
    "steps, epoch_steps, alpha_share, frozen_share",
    [
        (50, 10, 0.2, 0.1),
        (50, 10, 0.2, 0.0),
        (53, 10, 0.3, 0.25),
        (100, 0, 0.2, 0.1),
        (47, 8, 0.9, 0.5),
        (30, 7, 0.2, 0.1),
    ],
)
def test_the_order_of_weight_and_architecture_steps(steps, epoch_steps, alpha_share, frozen_share):
    shares = {"alpha_share": alpha_share, "frozen_share": frozen_share}
    task = task_of(steps=steps, epoch_steps=epoch_steps, **shares)
    length = epoch_steps or 44
    assert task.batches.segments_per_epoch == 44
    assert [segment for group, _, segment in task.plan if group == "weights"] == list(range(steps))
    assert [epoch for _, epoch, _ in task.plan] == sorted(epoch for _, epoch, _ in task.plan)
    for epoch in range(math.ceil(steps / length)):
        steps_of = [(group, segment) for group, e, segment in task.plan if e == epoch]
        trained = [segment for group, segment in steps_of if group == "weights"]
        assert trained == list(range(epoch * length, min((epoch + 1) * length, steps)))
        assert [group for group, _ in steps_of[: len(trained)]] == ["weights"] * len(trained)
        stretch = [segment for group, segment in steps_of if group == "alpha"]
        frozen = epoch * length < frozen_share * steps
        assert len(stretch) == (0 if frozen else round(alpha_share * len(trained)))
        assert stretch == [stretch[0] + i for i in range(len(stretch))]
    assert len(task.plan) == sum(group.steps for group in task.optimizers().values())
    first_alpha = [group for group, _, _ in task.plan].index("alpha")
    assert first_alpha >= frozen_share * steps


def test_architecture_steps_start_at_random_segments():
    starts = []
    for seed in (1, 2):
        plan = task_of(steps=400, epoch_steps=5, seed=seed).plan
        starts.append([segment for group, _, segment in plan if group == "alpha"])  # one step an epoch
        assert len(starts[-1]) == 72 and 0 <= min(starts[-1]) < 10 and 34 <= max(starts[-1]) < 44
        assert len(set(starts[-1])) > 25
    assert starts[0] != starts[1]


@pytest.mark.parametrize(
    "steps, epoch_steps, anneal, last", [(120_000, 2716, 0.7, 4.5e-6), (40_000, 2101, 0.6, 8.5e-4)]
)
def test_the_papers_temperatures(steps, epoch_steps, anneal, last):
    """Of enwik8 and WikiText-103: from 5 to these values without a floor."""
    task = task_of(steps=steps, epoch_steps=epoch_steps, anneal=anneal, temperature_floor=1e-9)
    assert task.temperature(task.epochs.count - 1) == pytest.approx(last, rel=0.02)
    assert task.optimizers()["alpha"].steps == pytest.approx(0.2 * 0.9 * steps, rel=0.02)


def test_the_temperature_falls_to_its_floor():
    task = task_of(steps=100, epoch_steps=5, frozen_share=0.3, temperature=5.0, anneal=0.5, temperature_floor=0.1)
    assert task.epochs.frozen == 6
    temperatures = [task.temperature(epoch) for epoch in range(20)]
    assert temperatures == pytest.approx([5.0] * 6 + [max(5.0 * 0.5**k, 0.1) for k in range(14)])
    assert temperatures[-1] == 0.1 and temperatures[11] == pytest.approx(0.15625)


@pytest.mark.parametrize("changes", [{"epoch_steps": 0}, {"alpha_share": 0.0}, {"epoch_steps": 2}])
def test_a_plan_that_never_trains_alpha_is_refused(changes):
    with pytest.raises(UserError, match="none of .* weight steps trains the architecture weights"):
        task_of(**{"steps": 40} | changes)
