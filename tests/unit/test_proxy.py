"""Proxy training is the beginning of the real training: interrupted, handed over and taken up, it ends with the same
bits as a training in one go."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from toy import VOCAB_SIZE, experiment

from planer.data.texts import Texts
from planer.errors import UserError
from planer.models import LanguageModel, initialise
from planer.runtime import Runtime
from planer.search.halving import halve
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
KINDS = ("scratch", "live", "cached", "untaught")


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
    """As every job makes it anew."""
    if kind == "scratch":
        return Recipe(CONFIG.retrain, TEXTS, Runtime(seed=seed))
    return Student(
        parent(),
        CONFIG.distill,
        TEXTS,
        Runtime(seed=seed),
        cache=cache if kind == "cached" else None,
        taught=kind != "untaught",
    )


def weights(model) -> dict[str, list]:
    return {name: tensor.tolist() for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="module")
def whole(cache, tmp_path_factory):
    """Trainings in one go."""
    folder = tmp_path_factory.mktemp("whole")
    return {kind: recipe(kind, cache).train(NETWORK, Record(Checkpoint(folder / kind, "whole"))) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_a_proxy_training_handed_over_ends_like_a_training_in_one_go(kind, whole, cache, tmp_path, capsys):
    """To 25 %, to 50 %, handed over to another job, and to the end.  Another network is trained in between."""
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
    """A control: what is compared above is no constant."""
    found = [weights(whole[kind][0]) for kind in ("scratch", "live", "untaught")]
    assert found[0] != found[1] != found[2]


def test_a_cached_teacher_teaches_like_a_live_one(whole):
    """To the last bit, over all steps."""
    assert weights(whole["cached"][0]) == weights(whole["live"][0])
    pd.testing.assert_frame_equal(whole["cached"][1], whole["live"][1], check_exact=True)
    assert whole["live"][1]["divergence"].notna().any() and "divergence" not in whole["untaught"][1]


def test_its_loss_is_that_of_the_training_at_this_step(tmp_path):
    """The validation of the whole training at half of its steps reads the same text."""
    config = dataclasses.replace(CONFIG.retrain, eval_steps=CONFIG.retrain.steps // 2)
    whole = Recipe(config, TEXTS, Runtime(seed=5))
    _, history, _ = whole.train(NETWORK, Record(Checkpoint(tmp_path / "whole", "whole")))
    proxy = ProxyTraining(recipe("scratch"), Checkpoint(tmp_path / "choice", "choice"))
    found = proxy(NETWORK, 0.5)
    expected = history.loc[history["step"] == config.steps // 2, "valid_nll"].item()
    assert found.mean == pytest.approx(expected, rel=1e-9) and sum(found.tokens) > 900


def halving(folder, killed_after: int | None = None):
    """A halving of three networks, as a job does it; killed after so many rungs of networks."""
    networks = [NETWORK, OTHER, CONFIG.model.architecture(VOCAB_SIZE, "sisf")]
    proxy, done = ProxyTraining(recipe("live"), Checkpoint(folder, "choice")), []

    def train(number: int, share: float):
        if len(done) == killed_after:
            raise KeyboardInterrupt
        done.append((number, share))
        return proxy(networks[number], share)

    return halve(3, [0.25, 0.5], train, [0.5, 0.4, 0.3]), proxy, networks


@pytest.mark.parametrize("killed_after", [1, 4])
def test_a_halving_that_was_killed_ends_like_one_that_was_not(killed_after, tmp_path):
    """Also where some networks were further than the rung that is asked for again."""
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


def test_the_loss_of_a_rung_is_kept_when_the_training_goes_on(tmp_path):
    first = ProxyTraining(recipe("scratch"), Checkpoint(tmp_path, "choice"))
    early, late = first(NETWORK, 0.1), first(NETWORK, 0.5)
    again = ProxyTraining(recipe("scratch"), Checkpoint(tmp_path, "choice"))
    assert again(NETWORK, 0.1) == early != late == again(NETWORK, 0.5)


def test_nothing_is_trained_twice(tmp_path, capsys):
    halving(tmp_path)
    capsys.readouterr()
    expected, proxy, networks = halving(tmp_path)
    assert "resuming" not in capsys.readouterr().err, "losses are read"
    assert proxy.seconds_now == 0 and proxy.seconds_without(networks[0]) > 0
    proxy.delete()
    assert not list(tmp_path.rglob("*.safetensors"))


def test_the_seconds_of_other_networks_are_the_cost_of_the_choice(tmp_path):
    proxy = ProxyTraining(recipe("scratch"), Checkpoint(tmp_path, "choice"))
    proxy(NETWORK, 0.1), proxy(OTHER, 0.1)
    assert proxy.seconds_without(NETWORK) + proxy.seconds_without(OTHER) == pytest.approx(proxy.seconds_now)
    assert 0 < proxy.seconds_without(NETWORK) < proxy.seconds_now


def test_a_share_of_nearly_nothing_is_one_step(tmp_path):
    proxy = ProxyTraining(recipe("scratch"), Checkpoint(tmp_path, "choice"))
    assert [proxy.steps(share) for share in (1e-6, 0.25, 0.5, 1.0)] == [1, 8, 15, 30]
    assert proxy(NETWORK, 1e-6).mean == pytest.approx(proxy.reference(recipe("scratch").start(NETWORK)), rel=0.05)


def test_another_network_in_its_place_does_not_resume(tmp_path, capsys):
    ProxyTraining(recipe("scratch"), Checkpoint(tmp_path, "choice"))(NETWORK, 0.1)
    capsys.readouterr()
    loss = ProxyTraining(recipe("scratch"), Checkpoint(tmp_path, "choice"))(OTHER, 0.1)
    assert "not resuming" in capsys.readouterr().err
    assert loss == ProxyTraining(recipe("scratch"), Checkpoint(tmp_path / "fresh", "choice"))(OTHER, 0.1)


def test_the_loss_before_training_is_that_of_the_start():
    """The parent's own network starts where the parent is."""
    student = recipe("live")
    proxy = ProxyTraining(student, Checkpoint("unused", "choice"))
    baseline = CONFIG.model.architecture(VOCAB_SIZE, CONFIG.patterns.baseline)
    assert proxy.untrained(baseline, VALID) == pytest.approx(proxy.reference(parent()), rel=1e-9)
    assert proxy.untrained(NETWORK, VALID[:300]) == proxy.untrained(NETWORK, VALID[:300])


def test_a_training_that_has_begun_is_not_taken_up_again(tmp_path):
    first, second = (Checkpoint(tmp_path / name, name) for name in ("first", "second"))
    first.save({"a": torch.ones(2)}, {"step": 1})
    first.hand_over(tmp_path / "handed")
    second.save({"a": torch.zeros(2)}, {"step": 2})
    second.take_up(tmp_path / "handed")
    assert second.load()[1] == {"step": 2}
    second.delete()
    second.take_up(tmp_path / "handed")
    tensors, values = second.load()
    assert values == {"step": 1} and tensors["a"].tolist() == [1, 1]


@pytest.mark.parametrize("damage", [lambda data: data[:-3], lambda data: data[:-1] + bytes([data[-1] ^ 1])])
def test_a_damaged_hand_over_is_one_line(damage, tmp_path):
    first, second = (Checkpoint(tmp_path / name, name) for name in ("first", "second"))
    first.save({"a": torch.ones(2)}, {"step": 1})
    first.hand_over(tmp_path / "handed")
    (tmp_path / "handed").write_bytes(damage((tmp_path / "handed").read_bytes()))
    with pytest.raises(UserError, match="handed") as error:
        second.take_up(tmp_path / "handed")
    assert "\n" not in str(error.value) and second.load() is None
    with pytest.raises(UserError, match="missing"):
        second.take_up(tmp_path / "missing")
