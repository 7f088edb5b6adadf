"""The beginnings of trainings: the same steps as in the whole of them, resumable, and what they decide."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from toy import VOCAB_SIZE, experiment

from planer.config import derive_seed
from planer.search.select import Selection
from planer.search.trials import Trials, best_by_trial
from planer.training.checkpoint import Checkpoint
from planer.training.retrain import LanguageModelling, retrain

CPU = torch.device("cpu")
CONFIG = experiment(sample_architecture={"trial_share": 0.2})
TRAIN = np.random.default_rng(0).integers(0, 50, 4000).astype(np.uint8)
TEXT = np.random.default_rng(1).integers(0, 50, 1000).astype(np.uint8)
NETWORK = CONFIG.model.architecture(VOCAB_SIZE, "sfm1i")
OTHER = CONFIG.model.architecture(VOCAB_SIZE, "sfsf")


def trials(folder, config=CONFIG) -> Trials:
    return Trials(config, TRAIN, TEXT, 5, CPU, torch.float32, Checkpoint(folder, "job"))


def test_a_trial_is_the_beginning_of_a_retraining(tmp_path):
    """Six of thirty steps, at the learning rates and on the text of the whole training."""
    found = {}

    class Stopped(LanguageModelling):
        def end_of_step(self, step):
            if step + 1 == 6:
                found["nll"] = self.validate(TEXT)
                self.model.train()
            return super().end_of_step(step)

    seed, checkpoint = derive_seed(5, "trial"), Checkpoint(tmp_path / "whole", "whole")
    retrain(NETWORK, TRAIN, TEXT, CONFIG.retrain, seed, CPU, torch.float32, checkpoint, objective=Stopped)
    assert trials(tmp_path)(NETWORK) == found["nll"]


def test_a_share_of_nearly_nothing_is_one_step(tmp_path):
    config = experiment(sample_architecture={"trial_share": 1.0e-6})
    assert trials(tmp_path, config)(NETWORK) != trials(tmp_path / "longer")(NETWORK)


def test_trials_resume_and_are_forgotten(tmp_path, capsys):
    first = trials(tmp_path)
    losses = [first(NETWORK), first(OTHER)]
    capsys.readouterr()
    again = trials(tmp_path)
    assert [again(NETWORK), again(OTHER)] == losses
    assert capsys.readouterr().err.count("resuming at step 6/6") == 2
    again.forget()
    assert not list(tmp_path.rglob("*.safetensors"))


def test_another_network_in_its_place_does_not_resume(tmp_path, capsys):
    trials(tmp_path)(NETWORK)
    capsys.readouterr()
    loss = trials(tmp_path)(OTHER)
    assert "not resuming" in capsys.readouterr().err
    assert loss == trials(tmp_path / "fresh")(OTHER)


CANDIDATES = [Selection([number], 0.0, 0.0, "optimal", 0.0) for number in range(4)]
LOSSES = [2.0, 1.5, 1.7, 1.9]


def decide(latencies: dict[int, float] | None, losses=LOSSES):
    measured = None if latencies is None else (lambda candidate: latencies[candidate.options[0]])
    return best_by_trial(CANDIDATES, lambda candidate: losses[candidate.options[0]], measured, 0.51)


def test_the_lowest_loss_wins():
    number, notes = decide(None)
    assert number == 1 and [note["trial_nll"] for note in notes] == LOSSES
    assert {note["measured"] for note in notes} == {None}


def test_what_is_too_slow_when_measured_gives_way_to_the_next():
    number, notes = decide({1: 0.52, 2: 0.509})
    assert number == 2 and [note["measured"] for note in notes] == [None, 0.52, 0.509, None]


def test_the_first_has_been_measured_before():
    assert decide({1: 0.6, 2: 0.6, 3: 0.6})[0] == 0
    assert decide({}, losses=[1.0, 1.5, 1.7, 1.9]) == (
        0,
        [{"trial_nll": nll, "measured": None} for nll in (1, 1.5, 1.7, 1.9)],
    )


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_share_must_be_a_part(share):
    from planer.files import UserError

    with pytest.raises(UserError, match="trial_share"):
        dataclasses.replace(CONFIG.sample_architecture, trial_share=share)
