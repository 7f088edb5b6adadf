"""The beginnings of trainings: the same steps as in the whole of them, resumable, and what they decide."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toy import VOCAB_SIZE, experiment

from planer.config import SampleConfig
from planer.files import UserError
from planer.parsing import build
from planer.search.solve import Selection
from planer.search.trials import HALF, WHOLE, Trials, best_by_trial
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
    """Six of thirty steps: with the weights, the learning rates and the text of the whole training."""
    found = {}

    class Stopped(LanguageModelling):
        def end_of_step(self, step):
            if step + 1 == 6:
                found["nll"] = self.validate(TEXT)
                self.model.train()
            return super().end_of_step(step)

    checkpoint = Checkpoint(tmp_path / "whole", "whole")
    retrain(NETWORK, TRAIN, TEXT, CONFIG.retrain, 5, CPU, torch.float32, checkpoint, objective=Stopped)
    assert trials(tmp_path)(NETWORK, WHOLE) == found["nll"]


def test_the_rest_of_a_trial_goes_on_where_the_first_half_ended(tmp_path, capsys):
    halved = trials(tmp_path / "halved")
    half, whole = halved(NETWORK, HALF), halved(NETWORK, WHOLE)
    assert "resuming at step 3/6" in capsys.readouterr().err
    assert whole == trials(tmp_path / "straight")(NETWORK, WHOLE) != half


def test_a_share_of_nearly_nothing_is_one_step(tmp_path):
    config = experiment(sample_architecture={"trial_share": 1.0e-6})
    assert trials(tmp_path, config)(NETWORK, WHOLE) != trials(tmp_path / "longer")(NETWORK, WHOLE)


def test_trials_resume_and_are_forgotten(tmp_path, capsys):
    first = trials(tmp_path)
    losses = [first(NETWORK, WHOLE), first(OTHER, WHOLE)]
    capsys.readouterr()
    again = trials(tmp_path)
    assert [again(NETWORK, WHOLE), again(OTHER, WHOLE)] == losses
    assert capsys.readouterr().err.count("resuming at step 6/6") == 2
    again.forget()
    assert not list(tmp_path.rglob("*.safetensors"))


def test_another_network_in_its_place_does_not_resume(tmp_path, capsys):
    trials(tmp_path)(NETWORK, WHOLE)
    capsys.readouterr()
    loss = trials(tmp_path)(OTHER, WHOLE)
    assert "not resuming" in capsys.readouterr().err
    assert loss == trials(tmp_path / "fresh")(OTHER, WHOLE)


CANDIDATES = [Selection([number], 0.0, 0.0, "optimal", 0.0) for number in range(5)]
HALVES, WHOLES = [3.0, 2.5, 2.7, 3.3, 3.1], [2.0, 1.8, 1.5, None, None]


def test_the_better_half_runs_the_whole_trial_and_its_lowest_loss_wins():
    losses = {HALF: HALVES, WHOLE: WHOLES}
    number, notes = best_by_trial(CANDIDATES, lambda candidate, part: losses[part][candidate.options[0]])
    assert number == 2 and [note["trial_nll"] for note in notes] == [2.0, 1.8, 1.5, 3.3, 3.1]
    assert [note["trial_part"] for note in notes] == [WHOLE, WHOLE, WHOLE, HALF, HALF]


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_share_must_be_a_part(share):
    with pytest.raises(UserError, match="trial_share"):
        build(SampleConfig, vars(CONFIG.sample_architecture) | {"trial_share": share})
