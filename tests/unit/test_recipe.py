"""Training from random weights, and of students of a parent."""

from __future__ import annotations

import dataclasses

import pandas as pd
import pytest
import torch
from test_retrain import CONFIG, TEXT, TEXTS, VALID, weights

from planer.config import DistillConfig
from planer.config.lengths import VALID_BATCH
from planer.errors import UserError
from planer.models import LanguageModel, initialise
from planer.runtime import Runtime
from planer.specs import Architecture, Attention, FeedForward, MoE
from planer.tasks.nll import Protocol, segment_nll
from planer.training.checkpoint import Checkpoint
from planer.training.loop import Record
from planer.training.parent_start import Parent, start_from_parent
from planer.training.recipe import Recipe, Student
from planer.training.teacher import write_cache

SEEDED = Runtime(seed=1)
STEPS = 8
DISTILL = DistillConfig(
    **vars(dataclasses.replace(CONFIG, steps=STEPS, eval_steps=4, log_steps=4, checkpoint_steps=3)),
    weight=0.5,
    temperature=1.0,
    expert_noise=0.0,
    cache_gb=1.0,
)

pytestmark = pytest.mark.slow
BLOCKS = (Attention(2, 8), FeedForward(32), Attention(2, 8), FeedForward(32))
NETWORK = (Attention(2, 8), FeedForward(32), MoE(32, 3, 2))


def architecture(*blocks) -> Architecture:
    return Architecture(11, 16, blocks, dropout=0.1, moe_dropout=0.1, init_std=0.3)


def parent() -> LanguageModel:
    model = LanguageModel(architecture(*BLOCKS))
    initialise(model, torch.Generator().manual_seed(0))
    return model


def student(config: DistillConfig = DISTILL, **options) -> Student:
    return Student(parent(), config, TEXTS, SEEDED, **options)


def trained(recipe: Recipe, folder, **options):
    return recipe.train(architecture(*NETWORK), Record(Checkpoint(folder, "test"), **options))


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return trained(student(), tmp_path_factory.mktemp("recipe"))


def test_a_student_starts_from_its_parent():
    network, own = architecture(*NETWORK), student().start(architecture(*NETWORK))
    expected = Recipe(DISTILL, TEXTS, SEEDED).start(network)
    assert weights(own) != weights(expected)
    start_from_parent(expected, Parent(parent(), TEXT, DISTILL))
    assert weights(own) == weights(expected)
    exact = student().start(architecture(*BLOCKS))
    assert weights(exact) == weights(parent())


def test_noise_on_experts_depends_on_the_seed():
    noisy = dataclasses.replace(DISTILL, expert_noise=0.1)
    first, again = (student(noisy).start(architecture(*NETWORK)) for _ in range(2))
    other = Student(parent(), noisy, TEXTS, Runtime(seed=2)).start(architecture(*NETWORK))
    experts = [model.blocks[2].sublayer.experts.w1 for model in (first, again, other)]
    assert torch.equal(experts[0], experts[1]) and not torch.equal(experts[0], experts[2])
    assert not torch.equal(experts[0][0], experts[0][1])


def test_the_second_network_of_a_recipe_gives_the_bits_of_the_first(result, tmp_path):
    recipe = student()
    recipe.train(architecture(*BLOCKS), Record(Checkpoint(tmp_path / "first", "test")))
    model, history, _ = trained(recipe, tmp_path / "second")
    assert weights(model) == weights(result[0])
    pd.testing.assert_frame_equal(history, result[1], check_exact=True)


def test_a_cached_teacher_gives_the_same_bits(result, tmp_path):
    cache = tmp_path / "logits.safetensors"
    write_cache(cache, parent(), TEXT, DISTILL, SEEDED)
    recipe = student(cache=cache)
    model, history, _ = trained(recipe, tmp_path, until=3)
    model, history, _ = trained(student(cache=cache), tmp_path)
    assert weights(model) == weights(result[0])
    pd.testing.assert_frame_equal(history, result[1], check_exact=True)
    with pytest.raises(UserError, match="this training needs"):
        student(dataclasses.replace(DISTILL, steps=STEPS + 1), cache=cache)


@pytest.mark.parametrize("until", [1, 4, 7])
def test_an_interrupted_student_resumes_with_the_same_bits(result, tmp_path, until):
    """With a live teacher, whose memory is in the checkpoint, and a new recipe, as in another job."""
    trained(student(), tmp_path, until=until)
    model, history, metrics = trained(student(), tmp_path)
    assert weights(model) == weights(result[0])
    pd.testing.assert_frame_equal(history, result[1], check_exact=True)
    assert metrics["valid_nll"] == result[2]["valid_nll"]


@pytest.mark.parametrize("options", [{"taught": False}, {"config": dataclasses.replace(DISTILL, weight=0.0)}])
def test_without_a_teacher_the_loss_is_cross_entropy(result, tmp_path, options):
    """The initial weights are the parent's; the file of logits is not opened."""
    model, history, _ = trained(student(**options, cache=tmp_path / "absent"), tmp_path)

    class Started(Recipe):
        def start(self, network):
            model = super().start(network)
            start_from_parent(model, Parent(parent(), TEXT, DISTILL))
            return model

    expected, plain, _ = trained(Started(DISTILL, TEXTS, SEEDED), tmp_path / "plain")
    assert weights(model) == weights(expected) != weights(result[0])
    assert "divergence" in result[1] and "divergence" not in history
    pd.testing.assert_frame_equal(history, plain, check_exact=True)


def test_scores_equal_validation_by_segment(result):
    nll, tokens = student().scored(result[0], VALID)
    protocol = Protocol(VALID_BATCH, CONFIG.tgt_len, CONFIG.mem_len)
    expected, counts = segment_nll(result[0], VALID, protocol, SEEDED)
    assert torch.equal(nll, expected) and torch.equal(tokens, counts)
