"""Proxy training: interrupted, handed over and resumed, it gives the bits of an uninterrupted training."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from toy import VOCAB_SIZE, experiment, latency_table

from planer.config.variant import parse_variant
from planer.data.texts import Texts
from planer.errors import UserError
from planer.models import LanguageModel, initialise
from planer.runtime import Runtime
from planer.search import choice
from planer.search import proxy as proxy_module
from planer.search.halving import halve
from planer.search.methods import config_of
from planer.search.proxy import ProxyTraining
from planer.training.checkpoint import Checkpoint
from planer.training.loop import Record
from planer.training.recipe import Recipe, Student
from planer.training.teacher import write_cache

pytestmark = pytest.mark.slow

CONFIG = experiment(model={"dropout": 0.1, "moe_dropout": 0.1}, distill={"expert_noise": 0.05})
TRAIN = np.random.default_rng(0).integers(0, 50, 3000).astype(np.uint8)
VALID = np.random.default_rng(1).integers(0, 50, 1000).astype(np.uint8)
TEXTS = Texts(VOCAB_SIZE, TRAIN, VALID)
NETWORK = CONFIG.model.architecture(VOCAB_SIZE, "sfm1i")
OTHER = CONFIG.model.architecture(VOCAB_SIZE, "s1fsf")
KINDS = ("scratch", "live", "cached", "no_teacher")


def parent() -> LanguageModel:
    model = LanguageModel(CONFIG.model.architecture(VOCAB_SIZE, CONFIG.patterns.baseline))
    initialise(model, torch.Generator().manual_seed(3))
    return model


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """The teacher's logits for the student's steps."""
    path = tmp_path_factory.mktemp("teacher") / "logits.safetensors"
    write_cache(path, parent(), TRAIN, CONFIG.distill, Runtime())
    return path


def recipe(kind: str, cache=None, seed: int = 5) -> Recipe:
    """A new recipe, as in every job."""
    if kind == "scratch":
        return Recipe(CONFIG.retrain, TEXTS, Runtime(seed=seed))
    return Student(
        parent(),
        CONFIG.distill,
        TEXTS,
        Runtime(seed=seed),
        cache=cache if kind == "cached" else None,
        taught=kind != "no_teacher",
    )


def weights(model) -> dict[str, list]:
    return {name: tensor.tolist() for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="module")
def whole(cache, tmp_path_factory):
    """Uninterrupted trainings."""
    folder = tmp_path_factory.mktemp("whole")
    return {kind: recipe(kind, cache).train(NETWORK, Record(Checkpoint(folder / kind, "whole"))) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_a_handed_over_proxy_training_equals_an_uninterrupted_one(kind, whole, cache, tmp_path, capsys):
    """It stops at 25 % and 50 %, and another job finishes it.  Another network is trained in between."""
    proxy = ProxyTraining(recipe(kind, cache), Checkpoint(tmp_path / "choice", "choice"))
    proxy(NETWORK, 0.25), proxy(OTHER, 0.25)
    proxy(NETWORK, 0.5)
    proxy.hand_over(NETWORK, tmp_path / "training.safetensors")
    proxy.delete()
    checkpoint = Checkpoint(tmp_path / "retrain", "retrain")
    checkpoint.take_up(tmp_path / "training.safetensors")
    capsys.readouterr()
    model, history, metrics = recipe(kind, cache).train(NETWORK, Record(checkpoint))
    total = (CONFIG.retrain if kind == "scratch" else CONFIG.distill).steps
    assert f"resuming at step {total // 2}/{total}" in capsys.readouterr().err
    expected, rows, known = whole[kind]
    assert weights(model) == weights(expected)
    pd.testing.assert_frame_equal(history, rows, check_exact=True)
    assert {k: v for k, v in metrics.items() if "second" not in k} == {
        k: v for k, v in known.items() if "second" not in k
    }


def test_recipes_differ(whole):
    """The other tests compare weights: those of different recipes differ."""
    found = [weights(whole[kind][0]) for kind in ("scratch", "live", "no_teacher")]
    assert found[0] != found[1] != found[2]


def test_a_cached_teacher_gives_the_bits_of_a_live_one(whole):
    assert weights(whole["cached"][0]) == weights(whole["live"][0])
    pd.testing.assert_frame_equal(whole["cached"][1], whole["live"][1], check_exact=True)
    assert whole["live"][1]["divergence"].notna().any() and "divergence" not in whole["no_teacher"][1]


def test_the_proxy_loss_equals_the_validation_loss_at_this_step(tmp_path):
    """Validation after half of the steps reads the same text."""
    config = dataclasses.replace(CONFIG.retrain, eval_steps=CONFIG.retrain.steps // 2)
    whole = Recipe(config, TEXTS, Runtime(seed=5))
    _, history, _ = whole.train(NETWORK, Record(Checkpoint(tmp_path / "whole", "whole")))
    proxy = ProxyTraining(recipe("scratch"), Checkpoint(tmp_path / "choice", "choice"))
    found = proxy(NETWORK, 0.5)
    expected = history.loc[history["step"] == config.steps // 2, "valid_nll"].item()
    assert found.mean == pytest.approx(expected, rel=1e-9) and sum(found.tokens) > 900


def halving(folder, killed_after: int | None = None):
    """Halve three networks; interrupted after ``killed_after`` proxy trainings."""
    networks = [NETWORK, OTHER, CONFIG.model.architecture(VOCAB_SIZE, "sisf")]
    proxy, done = ProxyTraining(recipe("live"), Checkpoint(folder, "choice")), []

    def train(number: int, share: float):
        if len(done) == killed_after:
            raise KeyboardInterrupt
        done.append((number, share))
        return proxy(networks[number], share)

    return halve(3, [0.25, 0.5], train, [0.5, 0.4, 0.3]), proxy, networks


@pytest.mark.parametrize("killed_after", [1, 4])
def test_an_interrupted_halving_gives_the_same_bits(killed_after, tmp_path):
    """Also if some networks are beyond the rung that is repeated."""
    expected, _, _ = halving(tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        halving(tmp_path / "killed", killed_after)
    found, proxy, networks = halving(tmp_path / "killed")
    assert found == expected
    for name, folder in (("killed", tmp_path / "killed"), ("straight", tmp_path / "straight")):
        again = ProxyTraining(recipe("live"), Checkpoint(folder, "choice"))
        for network in networks[: found.winner + 1]:
            again(network, 0.25)
        again.hand_over(networks[found.winner], tmp_path / f"{name}.safetensors")
    handed = []
    for name in ("killed", "straight"):
        checkpoint = Checkpoint(tmp_path / f"taken_{name}", "retrain")
        checkpoint.take_up(tmp_path / f"{name}.safetensors")
        tensors, values = checkpoint.load()
        handed.append(({key: tensor.tolist() for key, tensor in tensors.items()}, values | {"seconds": 0}))
    assert repr(handed[0]) == repr(handed[1])


def test_the_loss_of_an_earlier_rung_is_stored(tmp_path):
    first = ProxyTraining(recipe("scratch"), Checkpoint(tmp_path, "choice"))
    early, late = first(NETWORK, 0.1), first(NETWORK, 0.5)
    again = ProxyTraining(recipe("scratch"), Checkpoint(tmp_path, "choice"))
    assert again(NETWORK, 0.1) == early != late == again(NETWORK, 0.5)


def test_no_network_is_trained_twice(tmp_path, capsys):
    halving(tmp_path)
    capsys.readouterr()
    expected, proxy, networks = halving(tmp_path)
    assert "resuming" not in capsys.readouterr().err, "losses are stored"
    assert proxy.seconds_now == 0 and proxy.seconds_without(networks[0]) > 0
    proxy.delete()
    assert not list(tmp_path.rglob("*.safetensors"))


def test_checkpoints_of_an_earlier_run_are_deleted_too(tmp_path):
    ProxyTraining(recipe("scratch"), Checkpoint(tmp_path, "choice"))(OTHER, 0.1)
    again = ProxyTraining(recipe("scratch"), Checkpoint(tmp_path, "choice"))
    again.measured(lambda network: 0.5)(NETWORK)
    again.delete()
    assert not list(tmp_path.iterdir())


def test_the_seconds_of_a_choice_are_those_of_the_other_networks(tmp_path):
    proxy = ProxyTraining(recipe("scratch"), Checkpoint(tmp_path, "choice"))
    proxy(NETWORK, 0.1), proxy(OTHER, 0.1)
    assert proxy.seconds_without(NETWORK) + proxy.seconds_without(OTHER) == pytest.approx(proxy.seconds_now)
    assert 0 < proxy.seconds_without(NETWORK) < proxy.seconds_now


def test_a_killed_choice_goes_on_with_the_same_candidates(tmp_path, monkeypatch):
    """Where it is repeated, the machine measures other latencies."""
    variant = parse_variant("shallow_0.9-scratch")
    config = config_of(experiment(candidates={"proposers": {"shallow": 3}, "corrections": 1}), variant)

    class Killed(ProxyTraining):
        def __call__(self, network, share):
            raise KeyboardInterrupt

    def chosen(folder, slowdown: float, kind=ProxyTraining):
        def measured(network) -> float:
            return slowdown * latency_table().estimate(network, "cached") / 15.0

        monkeypatch.setattr(choice, "relative_latency", lambda *_: measured)
        proxy = kind(recipe("scratch"), Checkpoint(folder, "choice"))
        return choice.choose_network(config, variant, latency_table(), proxy, seed=1)

    expected = chosen(tmp_path / "straight", 1.0)
    assert expected != chosen(tmp_path / "slow", 1.05)
    with pytest.raises(KeyboardInterrupt):
        chosen(tmp_path / "killed", 1.0, Killed)
    assert chosen(tmp_path / "killed", 1.05) == expected


def test_search_cost_has_the_time_before_a_restart(tmp_path, monkeypatch):
    """7 s of a measurement, and 10 s of a training that is killed; then it takes 2 s to start and 30 s to the rung."""
    clock, kept = SimpleNamespace(now=0.0), iter([40.0, 70.0])
    monkeypatch.setattr(proxy_module, "time", SimpleNamespace(perf_counter=lambda: clock.now))

    def spend(seconds: float) -> float:
        clock.now += seconds
        return seconds

    class Timed(Recipe):
        def train(self, network, record):
            return spend(2 + 30), None, {"seconds": next(kept)}

        def scored(self, model, text):
            return torch.ones(1), torch.ones(1)

    def restarted() -> ProxyTraining:
        return ProxyTraining(Timed(CONFIG.retrain, TEXTS, Runtime()), Checkpoint(tmp_path, "choice"))

    restarted().measured(lambda network: spend(7))(NETWORK)
    spend(10)
    proxy = restarted()
    proxy(OTHER, 0.1)
    assert (proxy.seconds_now, proxy.seconds_without(NETWORK), proxy.seconds_without(OTHER)) == (32, 7 + 40, 7)
    proxy(OTHER, 0.5)
    assert (proxy.seconds_now, proxy.seconds_without(NETWORK)) == (32 + 30, 7 + 70)
    again = restarted()
    again(OTHER, 0.1), again(OTHER, 0.5)
    assert again.seconds_now == 0 and again.seconds_without(NETWORK) == 7 + 2 + 70, "2 s of the second start"


def test_a_tiny_share_is_one_step(tmp_path):
    proxy = ProxyTraining(recipe("scratch"), Checkpoint(tmp_path, "choice"))
    assert [proxy.steps(share) for share in (1e-6, 0.25, 0.5, 1.0)] == [1, 8, 15, 30]
    assert proxy(NETWORK, 1e-6).mean == pytest.approx(proxy.reference(recipe("scratch").start(NETWORK)), rel=0.05)


def test_after_a_restart_networks_may_come_in_another_order(tmp_path, capsys):
    before = ProxyTraining(recipe("scratch"), Checkpoint(tmp_path, "choice"))(NETWORK, 0.1)
    again = ProxyTraining(recipe("scratch"), Checkpoint(tmp_path, "choice"))
    loss = again(OTHER, 0.1)
    seconds = again.seconds_now
    assert again(NETWORK, 0.1) == before and again.seconds_now == seconds, "no step is repeated"
    assert "resuming" not in capsys.readouterr().err
    assert loss == ProxyTraining(recipe("scratch"), Checkpoint(tmp_path / "fresh", "choice"))(OTHER, 0.1)


def test_a_restart_reads_measured_latencies(tmp_path):
    speeds = iter([0.1 + 0.2, 0.5])
    for _ in range(2):
        proxy = ProxyTraining(recipe("scratch"), Checkpoint(tmp_path, "choice"))
        measured = proxy.measured(lambda network: next(speeds))
        assert measured(NETWORK) == measured(NETWORK) == 0.1 + 0.2
    assert measured(OTHER) == 0.5


def test_the_loss_before_training_is_that_of_the_initial_weights():
    """A network of the parent's blocks has the parent's loss."""
    student = recipe("live")
    proxy = ProxyTraining(student, Checkpoint("unused", "choice"))
    baseline = CONFIG.model.architecture(VOCAB_SIZE, CONFIG.patterns.baseline)
    assert proxy.untrained(baseline, VALID) == pytest.approx(proxy.reference(parent()), rel=1e-9)
    assert proxy.untrained(NETWORK, VALID[:300]) == proxy.untrained(NETWORK, VALID[:300])


@pytest.mark.parametrize("damage", [lambda data: data[:-3], lambda data: data[:-1] + bytes([data[-1] ^ 1])])
def test_a_damaged_handed_over_checkpoint_is_one_line(damage, tmp_path):
    first, second = (Checkpoint(tmp_path / name, name) for name in ("first", "second"))
    first.save({"a": torch.ones(2)}, {"step": 1})
    first.hand_over(tmp_path / "handed")
    (tmp_path / "handed").write_bytes(damage((tmp_path / "handed").read_bytes()))
    with pytest.raises(UserError, match="handed") as error:
        second.take_up(tmp_path / "handed")
    assert "\n" not in str(error.value) and second.load() is None
    with pytest.raises(UserError, match="missing"):
        second.take_up(tmp_path / "missing")
