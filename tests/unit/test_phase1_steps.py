"""Steps of phase 1: the text they read, the weights they change, and their loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_search import CONFIG, TOKENS, Parts, baseline, weights

from planer.search.phase1 import SearchTask
from planer.search.supernet_start import start_supernet
from planer.training.parent_start import Parent

pytestmark = pytest.mark.slow


class Recording(SearchTask):
    """Records the changed weights and the metrics of every step."""

    def __init__(self, *given):
        super().__init__(*given)
        self.changed: list[tuple[bool, bool]] = []
        self.metrics: list[dict] = []

    def batch(self, step):
        self.before = {name: parameter.detach().clone() for name, parameter in self.supernet.named_parameters()}
        self.gradients = [parameter.grad for parameter in self.weights]
        return super().batch(step)

    def end_of_step(self, model, step, metrics):
        self.metrics.append({name: float(value) for name, value in metrics.items()})
        moved = {name for name, after in model.named_parameters() if not torch.equal(after, self.before[name])}
        self.changed.append(("alpha" in moved, bool(moved - {"alpha"})))
        if self.group(step) == "alpha":  # no gradients of weights are computed
            assert all(now is then for now, then in zip((p.grad for p in self.weights), self.gradients, strict=True))
        return super().end_of_step(model, step, metrics)


def readings(model: torch.nn.Module) -> list[tuple]:
    """A list to which every forward pass appends its tokens, memory and next memory."""
    read: list[tuple] = []
    model.register_forward_hook(lambda _, given, output: read.append((*given[:2], output.state)))
    return read


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Parts:
    """The parts of a search after its training."""
    parts = Parts(kind=Recording)
    parts.read, parts.taught = readings(parts.supernet), readings(parts.parent)
    parts.parent_before = weights(parts.parent)
    parts.train(tmp_path_factory.mktemp("recording"))
    return parts


@pytest.fixture
def recording(parts) -> Recording:
    return parts.task


def test_each_step_changes_only_the_parameters_of_its_group(recording):
    groups = [group for group, _, _ in recording.plan]
    assert groups[:10] == ["weights"] * 10 and groups.count("alpha") == 8
    assert recording.changed == [(group == "alpha", group == "weights") for group in groups]


def test_alpha_is_frozen_in_the_first_epochs(recording):
    assert recording.trajectory[0]["alpha"] == [[0.0] * 6] * 4
    assert all(row["alpha"] != [[0.0] * 6] * 4 for row in recording.trajectory[1:])


@pytest.mark.parametrize("reader", ["read", "taught"], ids=["the supernet", "the parent"])
def test_text_and_memory_of_each_step(parts, recording, reader):
    """Weight steps continue the memory of the last weight step; the architecture steps of an epoch start without."""
    last = {"weights": None, "alpha": None}
    epoch_of_last_alpha = None
    for (group, epoch, segment), (tokens, memory, after) in zip(recording.plan, getattr(parts, reader), strict=True):
        assert torch.equal(tokens, recording.batches.batch_at(segment)[0])
        if group == "alpha" and epoch != epoch_of_last_alpha:
            last["alpha"], epoch_of_last_alpha = None, epoch
        assert memory is last[group]
        last[group] = after
    assert last["weights"][0].shape == (2, 12, 32)


def test_the_parent_does_not_change(parts):
    assert weights(parts.parent) == parts.parent_before and not parts.parent.training
    assert all(parameter.grad is None for parameter in parts.parent.parameters())


def test_the_loss_is_the_sum_of_its_parts():
    parts = Parts()
    for number, (group, _, _) in enumerate(parts.task.plan):
        loss, metrics = parts.loss(number)
        parts.task.end_of_step(parts.supernet, number, metrics)
        step = {name: float(value) for name, value in metrics.items()}
        penalty = step["beta"] * step["latency_loss"] if group == "alpha" else 0.0
        assert loss.item() == pytest.approx(0.5 * step[f"ce_{group}"] + 0.5 * step[f"kl_{group}"] + penalty)
        assert step[f"kl_{group}"] > 0


def test_cross_entropy_and_divergence_of_the_first_step():
    """The divergence is KL(parent || path)."""
    parts, parent = Parts(distill=0.25), baseline().eval()
    parts.supernet.eval()  # without dropout
    loss, metrics = parts.loss(0)
    inputs, targets = parts.task.batches.batch_at(0)
    with torch.no_grad():
        path, taught = (model.logits(model(inputs, mem_len=12).hidden).double() for model in (parts.supernet, parent))
        nll = torch.nn.functional.cross_entropy(path.flatten(0, 1), targets.flatten()).item()
        divergence = (taught.softmax(-1) * (taught.log_softmax(-1) - path.log_softmax(-1))).sum(-1).mean().item()
    assert metrics["ce_weights"].item() == pytest.approx(nll, rel=1e-5)
    assert metrics["kl_weights"].item() == pytest.approx(divergence, rel=1e-2)  # its logits are in half precision
    assert loss.item() == pytest.approx(0.75 * nll + 0.25 * divergence, rel=1e-4)


def test_the_path_of_the_parents_blocks_has_no_divergence():
    parts, parent = Parts(distill=1.0, weight_sharing="none"), baseline()
    start_supernet(parts.supernet.eval(), Parent(parent, TOKENS, CONFIG.search))
    s, f = CONFIG.design_space.index("attention_2"), CONFIG.design_space.index("feed_forward")
    parts.task.choices = torch.tensor([[s, f, s, f]] * 10)
    for step in range(3):
        loss, metrics = parts.loss(step)
        assert loss.item() == pytest.approx(0, abs=1e-6) and metrics["ce_weights"] > 1


def test_with_weight_0_there_is_no_teacher():
    parts = Parts(distill=0.0)
    loss, metrics = parts.loss(0)
    assert len(parts.terms) == 1 and list(metrics) == ["ce_weights"] and loss.item() == metrics["ce_weights"].item()


def test_rows_have_the_means_of_their_epoch(recording):
    for row in recording.trajectory:
        steps = [m for (_, epoch, _), m in zip(recording.plan, recording.metrics, strict=True) if epoch == row["epoch"]]
        for name in ("ce_weights", "kl_weights", "ce_alpha", "kl_alpha", "latency_loss", "beta"):
            values = [step[name] for step in steps if name in step]
            assert (name in row) == bool(values)
            assert not values or row[name] == pytest.approx(sum(values) / len(values))


def test_options_are_sampled_by_alpha(recording):
    """While alpha is frozen kinds of options take turns; later they are sampled."""
    updates = np.array([row["updates"] for row in recording.trajectory])
    assert updates.shape == (5, 4, 6) and (updates.sum(-1) == 10).all()
    kinds = np.stack([updates[..., members].sum(-1) for members in recording.supernet.kinds])
    assert set(kinds[0, 0]) <= {1, 2} and set(kinds[1:, 0].ravel()) <= {2, 3, 4}
    assert kinds[:, 1:].max() > 4
    for sampling in ("fair", "plain"):
        parts = Parts(sampling=sampling)
        with torch.no_grad():
            parts.supernet.alpha[:, 3] = 50.0
        assert (parts.task._choices(1) == 3).all()


def test_plain_sampling_is_uniform_while_alpha_is_frozen():
    counts = [
        torch.nn.functional.one_hot(Parts(sampling=sampling, steps=60_000, epoch_steps=6000).task._choices(0), 6).sum(
            (0, 1)
        )
        for sampling in ("plain", "fair")
    ]
    assert ((counts[0] - 4000).abs() < 300).all()  # 5 standard deviations
    assert counts[1][0] < 4000 - 300  # fair: one step in seven


def test_the_latency_loss_lowers_the_expected_latency(tmp_path):
    ends = []
    for weight in (30.0, 0.0):
        parts = Parts(target=0.3, latency_weight=weight, alpha_share=0.5)
        parts.set_alpha_rate(0.1)
        parts.train(tmp_path / str(weight))
        ends.append(parts.task.trajectory[-1])
    start = parts.task.trajectory[0]["expected_ms"]
    assert ends[0]["expected_ms"] < 0.6 * start and ends[0]["beta"] > 0
    assert ends[0]["skip_share"] > 2 / 6
    assert ends[1]["expected_ms"] > 0.8 * start and ends[1]["beta"] == 0.0


def test_a_constant_argmax_ends_the_search(tmp_path):
    """PAR's stopping rule: if alpha does not change, three of the four unfrozen epochs are enough."""
    parts = Parts(stop_share=0.75)
    parts.set_alpha_rate(1e-12)
    with torch.no_grad():
        parts.supernet.alpha[:, 0] = 1.0
    speed = parts.train(tmp_path / "steady")
    assert [row["epoch"] for row in parts.task.trajectory] == [0, 1, 2, 3] and parts.task.converged
    assert speed["steps"] == 46 < len(parts.task.plan)
    moving = Parts(stop_share=0.75).task
    moving.trajectory = [{"flips": flips} for flips in (0, 0, 0, 1, 0)]
    assert not moving.converged
    assert not Parts().task.converged
