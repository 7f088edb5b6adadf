"""The training loop on tiny tasks: optimizer step groups, history, stops and resuming."""

import dataclasses
import math
import os
import signal
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from torch import nn

from planer.config import OptimizerConfig
from planer.errors import UserError
from planer.runtime import Runtime
from planer.tasks.task import Result, Task
from planer.training import loop
from planer.training.checkpoint import Checkpoint
from planer.training.loop import Record, StepGroup, fit
from planer.training.loss import StepLoss
from planer.training.optimizer import make_optimizer
from planer.training.schedule import learning_rate
from planer.training.terms import Term

pytestmark = pytest.mark.slow
LAMB = OptimizerConfig("lamb", 0.05, 0.01, 3, (0.9, 0.999), 1e-6, 0.01, 0.25)
ADAM = OptimizerConfig("adamw", 0.02, 0.001, 0, (0.9, 0.999), 1e-8, 0.0, 0.0)


class Crash(Exception):
    """A crash in the middle of a run."""


class TwoGroups(Task):
    """Two of three steps train the weights, the third alpha; with dropout, a memory and a generator."""

    name = "groups"

    def __init__(self, crash_at: int | None = None):
        torch.manual_seed(3)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 4), nn.BatchNorm1d(4))
        self.model.alpha = nn.Parameter(torch.zeros(4))
        weights = [param for name, param in self.model.named_parameters() if name != "alpha"]
        self.optimizers = {
            "weights": StepGroup(make_optimizer(weights, LAMB), LAMB, 16),
            "alpha": StepGroup(make_optimizer([self.model.alpha], ADAM), ADAM, 8),
        }
        self.generator = torch.Generator().manual_seed(5)
        self.epochs = 0
        self.crash_at = crash_at
        self.speed: dict[str, float] = {}

    def group(self, step):
        return "alpha" if step % 3 == 2 else "weights"

    def batch(self, step):
        if step == self.crash_at:
            raise Crash
        return step, torch.randn(6, 4, generator=self.generator)

    def loss(self, model, batch, state, wants=(), scores=()):
        step, x = batch
        y = model(x if state is None else x + state[0]) * model.alpha.exp()
        metrics = {"size": y.abs().mean(), "columns": x.mean(dim=0)[:2], "third": step / 3}
        return Result((y - x).square().mean(), metrics, 6, [y.detach(), None], [], {})

    def end_of_step(self, model, step, metrics):
        self.epochs += step % 5 == 4
        return {"epochs": self.epochs, "valid": float(metrics["size"])} if step % 5 == 4 else None

    def state(self):
        return {"generator": self.generator.get_state()}, {"epochs": self.epochs}

    def restore(self, tensors, values):
        self.generator.set_state(tensors["generator"])
        self.epochs = values["epochs"]


class GrowingPenalty(Term):
    """A penalty of alpha with a growing weight."""

    group = "alpha"

    def __init__(self, model: nn.Module):
        self.model, self.weight = model, torch.zeros(())

    def __call__(self, result, batch, step):
        assert batch[0] == step and step % 3 == 2
        self.weight = self.weight + 0.01
        return self.weight * self.model.alpha.square().sum(), {"weight": self.weight}

    def state(self):
        return {"weight": self.weight}

    def restore(self, tensors):
        self.weight = tensors["weight"]


def run(task, folder, rows=None, checkpoint_steps=4, identity="groups", until=None, log_steps=6):
    rows = [] if rows is None else rows
    config = SimpleNamespace(log_steps=log_steps, checkpoint_steps=checkpoint_steps)
    record = Record(Checkpoint(folder, identity), rows.append, until)
    history, task.speed = fit(
        task.model, task, [GrowingPenalty(task.model)], task.optimizers, Runtime(), config, record
    )
    return history


def weights(task) -> dict[str, list]:
    return {name: tensor.tolist() for name, tensor in task.model.state_dict().items()}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    task = TwoGroups()
    history = run(task, tmp_path_factory.mktemp("uninterrupted"))
    return task, history


@pytest.mark.parametrize("crash_at", [1, 4, 5, 11, 12, 17, 23])
def test_a_resumed_run_ends_with_the_same_bits(uninterrupted, tmp_path, crash_at):
    with pytest.raises(Crash):
        run(TwoGroups(crash_at), tmp_path)
    torch.rand(7)  # the global generator differs
    resumed = TwoGroups()
    history = run(resumed, tmp_path)
    assert weights(resumed) == weights(uninterrupted[0])
    pd.testing.assert_frame_equal(history, uninterrupted[1], check_exact=True)
    assert resumed.state()[1] == uninterrupted[0].state()[1]
    assert all(map(torch.equal, resumed.state()[0].values(), uninterrupted[0].state()[0].values()))
    assert resumed.speed["tokens"] == uninterrupted[0].speed["tokens"] == 6 * 24


@pytest.mark.parametrize("stops", [[1], [4, 11], [6, 7, 12], [24], [99]])
def test_planned_stops_give_the_same_bits(uninterrupted, tmp_path, stops):
    """Every stop saves a checkpoint at its step."""
    for stop in stops:
        stopped = TwoGroups()
        run(stopped, tmp_path, until=stop, checkpoint_steps=10)
        assert stopped.speed["steps"] == Checkpoint(tmp_path, "groups").load()[1]["step"] == min(stop, 24)
        torch.rand(5)
    again = TwoGroups(crash_at=0)
    run(again, tmp_path, until=stops[0])  # the checkpoint is beyond that step
    assert again.speed["steps"] == min(stops[-1], 24)
    resumed = TwoGroups()
    history = run(resumed, tmp_path)
    assert weights(resumed) == weights(uninterrupted[0])
    pd.testing.assert_frame_equal(history, uninterrupted[1], check_exact=True)


def test_a_finished_run_gives_its_results_again(uninterrupted, tmp_path):
    first = run(TwoGroups(), tmp_path)
    again = TwoGroups(crash_at=0)
    rows: list[dict] = []
    pd.testing.assert_frame_equal(run(again, tmp_path, rows), first, check_exact=True)
    assert rows == [] and weights(again) == weights(uninterrupted[0])
    assert again.speed["steps"] == 24 and again.speed["tokens_per_second"] > 0


def test_another_identity_starts_over(uninterrupted, tmp_path, capsys):
    with pytest.raises(Crash):
        run(TwoGroups(20), tmp_path, identity="other")
    task = TwoGroups()
    run(task, tmp_path)
    assert "other" in capsys.readouterr().err
    assert weights(task) == weights(uninterrupted[0])


class Recording(TwoGroups):
    """Records the learning rate and the changed weights of every step."""

    def __init__(self):
        super().__init__()
        self.rates: dict[str, list[float]] = {"weights": [], "alpha": []}
        self.moved: list[tuple[str, bool, bool]] = []

    def batch(self, step):
        self.before = {name: param.detach().clone() for name, param in self.model.named_parameters()}
        return super().batch(step)

    def end_of_step(self, model, step, metrics):
        group = self.group(step)
        self.rates[group].append(self.optimizers[group].optimizer.param_groups[0]["lr"])
        moved = {name for name, param in self.model.named_parameters() if not torch.equal(param, self.before[name])}
        self.moved.append((group, "alpha" in moved, bool(moved - {"alpha"})))
        return super().end_of_step(model, step, metrics)


def test_each_step_trains_only_its_group_at_its_rate(tmp_path):
    task = Recording()
    run(task, tmp_path)
    assert task.rates["weights"] == [learning_rate(n, LAMB, 16) for n in range(1, 17)]
    assert task.rates["alpha"] == [learning_rate(n, ADAM, 8) for n in range(1, 9)]
    expected = [("alpha", True, False) if step % 3 == 2 else ("weights", False, True) for step in range(24)]
    assert task.moved == expected


def test_gradients_are_clipped_over_the_parameters_of_a_group(tmp_path):
    class Norms(TwoGroups):
        norms: dict[str, float] = {}

        def loss(self, *given):
            result = super().loss(*given)
            return dataclasses.replace(result, loss=1000 * result.loss)

        def end_of_step(self, model, step, metrics):
            group = self.optimizers[self.group(step)].optimizer.param_groups[0]["params"]
            norm = torch.stack([param.grad.norm() for param in group]).norm().item()
            self.norms.setdefault(self.group(step), []).append(norm)

    task = Norms()
    history = run(task, tmp_path)
    assert task.norms["weights"] == pytest.approx([0.25] * 16, rel=1e-4)
    assert min(task.norms["alpha"]) > 10  # clip 0 is off
    assert history["grad_norm"].min() > 10  # the norm before clipping


def test_the_history_holds_means_and_validation_rows(uninterrupted):
    history = uninterrupted[1]
    assert history["step"].tolist() == [5, 6, 10, 12, 15, 18, 20, 24]
    assert history["step"].dtype == "int64" and (history.dtypes.drop("step") == "float64").all()
    logged = history[history["third"].notna()]
    assert logged["step"].tolist() == [6, 12, 18, 24]
    assert logged["third"].tolist() == pytest.approx([2.5 / 3, 8.5 / 3, 14.5 / 3, 20.5 / 3])
    assert logged["lr"].tolist() == [learning_rate(n, LAMB, 16) for n in (4, 8, 12, 16)]
    assert logged["alpha_lr"].tolist() == [learning_rate(n, ADAM, 8) for n in (2, 4, 6, 8)]
    assert {"loss", "alpha_loss", "size", "columns_0", "columns_1", "grad_norm"} < set(history.columns)
    assert "alpha_grad_norm" not in history.columns  # not clipped
    assert history.loc[history["valid"].notna(), "step"].tolist() == [5, 10, 15, 20]


def test_rows_are_reported_at_once_and_validation_is_in_a_logged_row(tmp_path):
    rows: list[dict] = []
    task = TwoGroups()
    history = run(task, tmp_path, rows, checkpoint_steps=100, log_steps=5)
    assert [row["step"] for row in rows] == history["step"].tolist() == [5, 10, 15, 20, 24]
    assert all("loss" in row for row in rows)
    assert [row.get("valid") for row in rows[:4]] == history["valid"].tolist()[:4]
    assert rows[-1]["loss"] == history["loss"].iloc[-1]
    assert not {"seconds", "tokens_per_second"} & set(history.columns)


class Signalled(TwoGroups):
    """Gets a signal in the middle of a step."""

    def __init__(self, number: signal.Signals):
        super().__init__()
        self.number = number

    def batch(self, step):
        if step == 9:
            os.kill(os.getpid(), self.number)
        return super().batch(step)


@pytest.mark.parametrize(
    ("number", "error"),
    [(signal.SIGTERM, SystemExit(143)), (signal.SIGHUP, SystemExit(129)), (signal.SIGINT, KeyboardInterrupt())],
)
def test_a_signal_saves_after_the_running_step(uninterrupted, tmp_path, number, error):
    before = signal.signal(number, signal.default_int_handler)  # jobs in the background ignore SIGINT
    try:
        with pytest.raises(type(error)) as end:
            run(Signalled(number), tmp_path, checkpoint_steps=1000)
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)
    assert end.value.args == error.args
    assert Checkpoint(tmp_path, "groups").load()[1]["step"] == 10
    resumed = TwoGroups()
    history = run(resumed, tmp_path)
    assert weights(resumed) == weights(uninterrupted[0])
    pd.testing.assert_frame_equal(history, uninterrupted[1], check_exact=True)


class Diverging(TwoGroups):
    """The loss is multiplied by ``factor`` in one step, by default the 14th."""

    def __init__(self, factor: float, after_step: int = 13):
        super().__init__()
        self.factor, self.after_step = factor, after_step

    def loss(self, model, batch, *given):
        result = super().loss(model, batch, *given)
        return dataclasses.replace(result, loss=result.loss * self.factor) if batch[0] == self.after_step else result


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_an_ignored_signal_stays_ignored(uninterrupted, tmp_path, number):
    before = signal.signal(number, signal.SIG_IGN)
    try:
        history = run(Signalled(number), tmp_path)
    finally:
        signal.signal(number, before)
    pd.testing.assert_frame_equal(history, uninterrupted[1], check_exact=True)


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(tmp_path, factor):
    message = r"groups: loss is (nan|inf) at step 14 \(learning rate 0.0\d+\): lower"
    with pytest.raises(UserError, match=message) as error:
        run(Diverging(factor), tmp_path)
    assert "\n" not in str(error.value) and str(Checkpoint(tmp_path, "").path) in str(error.value)
    tensors, values = Checkpoint(tmp_path, "groups").load()
    assert values["step"] == 12
    assert all(tensor.isfinite().all() for name, tensor in tensors.items() if name.startswith("model."))


def test_a_late_check_of_losses_names_the_first_bad_step(tmp_path):
    """On a GPU losses are read once per row of history."""
    task = Diverging(math.nan, after_step=1)
    late = loop._Run(StepLoss(task.model, task, [], Runtime()), task.optimizers, Checkpoint(tmp_path, "x"))
    for _ in range(4):
        late.train_step()
    with pytest.raises(UserError, match=f"at step 2 .learning rate {learning_rate(2, LAMB, 16):.3g}"):
        late.check_losses()


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    class InfiniteGradient(TwoGroups):
        def end_of_step(self, model, step, metrics):
            if step == 15:
                self.model.alpha.data[1] = math.nan  # as an infinite gradient of a finite loss does
            return None

    with pytest.raises(UserError, match="alpha is not finite after step 16"):
        run(InfiniteGradient(), tmp_path)
    assert Checkpoint(tmp_path, "groups").load()[1]["step"] == 12


def test_without_a_checkpoint_the_message_names_none(tmp_path):
    with pytest.raises(UserError) as error:
        run(Diverging(math.nan, after_step=2), tmp_path)
    assert "step 3" in str(error.value) and "checkpoint" not in str(error.value)


def test_a_failed_checkpoint_ends_the_run_in_one_line(tmp_path):
    (tmp_path / "checkpoint").write_text("a file")
    with pytest.raises(UserError, match="cannot write"):
        run(TwoGroups(), tmp_path)


def test_speed_adds_up_over_resumes(tmp_path, monkeypatch):
    clock = iter(range(0, 100_000, 10))
    monkeypatch.setattr(loop.time, "monotonic", lambda: next(clock))
    with pytest.raises(Crash):
        run(TwoGroups(crash_at=20), tmp_path)
    _, values = Checkpoint(tmp_path, "groups").load()
    task = TwoGroups()
    run(task, tmp_path)
    assert values["seconds"] > 0 and task.speed["seconds"] > values["seconds"]
    assert task.speed["tokens"] == 6 * 24
    assert task.speed["tokens_per_second"] == 6 * 24 / task.speed["seconds"]
