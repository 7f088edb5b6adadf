"""Distillation: its loss, its gradients, and resuming."""

from __future__ import annotations

import dataclasses

import pandas as pd
import pytest
import torch
from kill import kill_at
from test_retrain import ARCHITECTURE, CONFIG, TEXT, TEXTS, weights

from planer.models import LanguageModel, head, initialise
from planer.runtime import Runtime
from planer.specs import Architecture, Attention, FeedForward
from planer.tasks.causal_lm import CausalLM
from planer.training.checkpoint import Checkpoint
from planer.training.distillation import Distillation
from planer.training.loop import Record
from planer.training.loss import StepLoss
from planer.training.parent_start import Parent, start_from_parent
from planer.training.recipe import Recipe
from planer.training.teacher import LiveTeacher
from planer.training.terms import Balance

pytestmark = pytest.mark.slow

CPU = Runtime()
TEACHER = Architecture(11, 24, (Attention(3, 8), FeedForward(48), Attention(1, 8)), dropout=0.5, init_std=0.3)


def network(architecture: Architecture, seed: int = 0) -> LanguageModel:
    model = LanguageModel(architecture)
    initialise(model, torch.Generator().manual_seed(seed))
    return model


def run(folder, rows=None, weight=0.5, temperature=2.0):
    """Train a student from random weights, with a teacher."""
    on_row = (lambda row: None) if rows is None else rows.append
    return TaughtRecipe(weight, temperature).train(ARCHITECTURE, Record(Checkpoint(folder, "test"), on_row))


class TaughtRecipe(Recipe):
    """Training from random weights with a teacher."""

    def __init__(self, weight: float = 0.5, temperature: float = 2.0, config=CONFIG):
        super().__init__(config, TEXTS, Runtime(seed=1))
        self.teacher = network(TEACHER)
        self.options = {"weight": weight, "temperature": temperature}

    def terms(self):
        return [Distillation(LiveTeacher(self.teacher, self.config.mem_len), **self.options), *super().terms()]


def without_dropout(seed: int = 0) -> LanguageModel:
    """A student of the architecture without dropout."""
    return network(dataclasses.replace(ARCHITECTURE, dropout=0.0, moe_dropout=0.0, init_std=0.3), seed)


def distillation(
    student: LanguageModel,
    teacher: LanguageModel,
    weight: float,
    temperature: float,
    balance: float = 0.01,
    runtime: Runtime = CPU,
) -> StepLoss:
    terms = [Distillation(LiveTeacher(teacher, CONFIG.mem_len), weight, temperature), Balance(balance)]
    return StepLoss(student.train(), CausalLM(TEXTS, CONFIG, runtime), terms, runtime)


@pytest.mark.parametrize(("weight", "temperature"), [(0.5, 1.0), (0.3, 2.5), (1.0, 0.5)])
def test_the_loss_equals_its_closed_form_over_several_segments(weight, temperature):
    student, teacher = without_dropout(), network(TEACHER).eval()
    objective = distillation(student, teacher, weight, temperature)
    own_memory = taught_memory = None
    for step in range(3):
        loss, metrics = objective(step)
        inputs, targets = objective.task.batches.batch_at(step)
        output = student(inputs, own_memory, mem_len=CONFIG.mem_len, wants=("balance",))
        hidden, own_memory = output.hidden, output.state
        balance = [aux["balance"] for aux in output.aux if aux]
        output = teacher(inputs, taught_memory, mem_len=CONFIG.mem_len)
        wanted, taught_memory = output.hidden, output.state
        z = hidden.double() @ student.embedding.weight.double().T + student.head.bias.double()
        t = wanted.double() @ teacher.embedding.weight.double().T + teacher.head.bias.double()
        p, q = (t / temperature).softmax(-1), (z / temperature).softmax(-1)
        divergence = (p * (p / q).log()).sum(-1).mean()
        nll = -z.log_softmax(-1).gather(-1, targets[..., None]).mean()
        expected = (1 - weight) * nll + weight * temperature**2 * divergence + 0.01 * sum(balance) / 2
        assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
        assert metrics["nll"].item() == pytest.approx(nll.item(), rel=1e-5)
        assert metrics["divergence"].item() == pytest.approx(divergence.item(), rel=1e-3)
    assert own_memory[0].shape[1] == taught_memory[0].shape[1] == CONFIG.mem_len


def test_a_copy_of_its_teacher_has_no_loss_and_no_gradient():
    """Up to the rounding of the teacher's logits to half precision: 2^-11 of a logit, 0.005 of 10."""
    parent = without_dropout()
    student = without_dropout(seed=1)
    start_from_parent(student, Parent(parent, TEXT, CONFIG))
    objective = distillation(student, parent, 1.0, 2.0, balance=0.0)
    for step in range(3):
        loss, metrics = objective(step)
        loss.backward()
        assert loss.item() == pytest.approx(0, abs=1e-6) and metrics["nll"] > 1
    assert max(p.grad.abs().max() for p in student.parameters() if p.grad is not None) < 2e-3
    other = distillation(without_dropout(seed=1), parent, 1.0, 2.0)
    assert other(0)[0] > 0.1


def test_chunks_of_logits_change_neither_loss_nor_gradients(monkeypatch):
    results = []
    for at_once in (2**26, 5 * 11):
        monkeypatch.setattr(head, "LOGITS_AT_ONCE", at_once)
        objective = distillation(without_dropout(), network(TEACHER), 0.5, 2.0)
        loss, _ = objective(0)
        loss.backward()
        results.append((loss.detach(), *(p.grad for p in objective.model.parameters() if p.grad is not None)))
    for whole, chunked in zip(*results, strict=True):
        torch.testing.assert_close(chunked, whole)


def test_bfloat16_products_give_nearly_the_same_loss_in_single_precision():
    losses = []
    for dtype in (torch.float32, torch.bfloat16):
        objective = distillation(without_dropout(), network(TEACHER), 0.5, 2.0, runtime=Runtime(dtype=dtype))
        loss, metrics = objective(0)
        loss.backward()
        assert loss.dtype == metrics["divergence"].dtype == torch.float32
        assert all(p.grad.isfinite().all() for p in objective.model.parameters() if p.grad is not None)
        losses.append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert losses[1] != losses[0]


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return run(tmp_path_factory.mktemp("distill"))


def test_weight_0_gives_the_bits_of_training_without_a_teacher(result, tmp_path):
    plain = Recipe(CONFIG, TEXTS, Runtime(seed=1)).train(ARCHITECTURE, Record(Checkpoint(tmp_path / "p", "test")))
    unused = run(tmp_path / "zero", weight=0.0)
    assert weights(unused[0]) == weights(plain[0])
    pd.testing.assert_frame_equal(unused[1][plain[1].columns], plain[1], check_exact=True)
    assert weights(result[0]) != weights(plain[0])


def test_the_teacher_does_not_change(tmp_path):
    recipe = TaughtRecipe(config=dataclasses.replace(CONFIG, steps=5))
    before = weights(recipe.teacher)
    model, history, _ = recipe.train(ARCHITECTURE, Record(Checkpoint(tmp_path, "test")))
    assert weights(recipe.teacher) == before and not recipe.teacher.training
    assert all(param.grad is None for param in recipe.teacher.parameters())
    assert history["divergence"].notna().any()
    assert set(model.state_dict()) == set(LanguageModel(ARCHITECTURE).state_dict())


def test_a_killed_run_resumes_with_the_same_bits(result, tmp_path, capsys):
    kill_at(20, run, tmp_path)
    tensors, values = Checkpoint(tmp_path, "test").load()
    assert values["step"] == 18 and "loss.term.0.teacher.2" in tensors
    model, history, _ = run(tmp_path)
    assert "retrain: resuming at step 18/40" in capsys.readouterr().err
    assert weights(model) == weights(result[0])
    pd.testing.assert_frame_equal(history, result[1], check_exact=True)
