"""Distillation: its loss against a closed form, what it leaves alone, and that a killed run ends with the same bits."""

from __future__ import annotations

import dataclasses
from functools import partial

import pandas as pd
import pytest
import torch
from kill import kill_at
from test_retrain import ARCHITECTURE, CONFIG, TEXT, VALID, weights

from planer import model as model_module
from planer.architecture import Architecture, Attention, FeedForward
from planer.config import DistillConfig
from planer.model import LanguageModel, initialise
from planer.training.checkpoint import Checkpoint
from planer.training.distillation import Distillation
from planer.training.retrain import retrain

CPU = torch.device("cpu")
TEACHER = Architecture(11, 24, (Attention(3, 8), FeedForward(48), Attention(1, 8)), dropout=0.5, init_std=0.3)


def network(architecture: Architecture, seed: int = 0) -> LanguageModel:
    model = LanguageModel(architecture)
    initialise(model, torch.Generator().manual_seed(seed))
    return model


def run(folder, rows=None, weight=0.5, temperature=2.0):
    objective = partial(Distillation, teacher=network(TEACHER), distill=DistillConfig(weight, temperature))
    on_row = (lambda row: None) if rows is None else rows.append
    checkpoint = Checkpoint(folder, "test")
    options = {"start": "distill", "objective": objective}
    return retrain(ARCHITECTURE, TEXT, VALID, CONFIG, 1, CPU, torch.float32, checkpoint, on_row, **options)


def still(seed: int = 0) -> LanguageModel:
    """A student without dropout."""
    return network(dataclasses.replace(ARCHITECTURE, dropout=0.0, moe_dropout=0.0, init_std=0.3), seed)


def distillation(student: LanguageModel, teacher: LanguageModel, weight: float, temperature: float) -> Distillation:
    options = {"balance_weight": 0.01, "eval_steps": 100}
    distill = DistillConfig(weight, temperature)
    return Distillation(student, TEXT, VALID, CONFIG, teacher=teacher, distill=distill, **options)


@pytest.mark.parametrize(("weight", "temperature"), [(0.5, 1.0), (0.3, 2.5), (1.0, 0.5)])
def test_loss_is_the_closed_form_with_a_memory_for_both(weight, temperature):
    student, teacher = still(), network(TEACHER).eval()
    objective = distillation(student, teacher, weight, temperature)
    own = taught = None
    for step in range(3):
        loss, metrics = objective.loss(step)
        inputs, targets = objective.batches.batch_at(step)
        hidden, own = student(inputs, own, mem_len=CONFIG.mem_len)
        wanted, taught = teacher(inputs, taught, mem_len=CONFIG.mem_len)
        z = hidden.double() @ student.embedding.weight.double().T + student.output_bias.double()
        t = wanted.double() @ teacher.embedding.weight.double().T + teacher.output_bias.double()
        p, q = (t / temperature).softmax(-1), (z / temperature).softmax(-1)
        divergence = (p * (p / q).log()).sum(-1).mean()
        nll = -z.log_softmax(-1).gather(-1, targets[..., None]).mean()
        expected = (1 - weight) * nll + weight * temperature**2 * divergence + 0.01 * student.balance_loss()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        assert metrics["nll"].item() == pytest.approx(nll.item(), rel=1e-5)
        assert metrics["divergence"].item() == pytest.approx(divergence.item(), rel=1e-4)
    assert own[0].shape[1] == taught[0].shape[1] == CONFIG.mem_len


def test_a_student_that_predicts_as_its_teacher_has_nothing_to_learn():
    objective = distillation(still(), still(), 1.0, 2.0)
    objective.balance_weight = 0.0
    for step in range(3):
        loss, metrics = objective.loss(step)
        loss.backward()
        assert loss.item() == pytest.approx(0, abs=1e-6) and metrics["nll"] > 1
    assert all(param.grad.abs().max() < 1e-5 for param in objective.model.parameters() if param.grad is not None)


def test_chunks_of_logits_change_neither_loss_nor_gradients(monkeypatch):
    results = []
    for at_once in (2**26, 5 * 11):
        monkeypatch.setattr(model_module, "LOGITS_AT_ONCE", at_once)
        objective = distillation(still(), network(TEACHER), 0.5, 2.0)
        loss, _ = objective.loss(0)
        loss.backward()
        results.append((loss.detach(), *(p.grad for p in objective.model.parameters() if p.grad is not None)))
    for whole, chunked in zip(*results, strict=True):
        torch.testing.assert_close(chunked, whole)


def test_bfloat16_products_give_nearly_the_same_loss_in_single_precision():
    losses = []
    for dtype in (torch.float32, torch.bfloat16):
        objective = distillation(still(), network(TEACHER), 0.5, 2.0)
        objective.dtype = dtype
        loss, metrics = objective.loss(0)
        loss.backward()
        assert loss.dtype == metrics["divergence"].dtype == torch.float32
        assert all(p.grad.isfinite().all() for p in objective.model.parameters() if p.grad is not None)
        losses.append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert losses[1] != losses[0]


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return run(tmp_path_factory.mktemp("distill"))


def test_without_weight_it_is_plain_training_to_the_last_bit(result, tmp_path):
    plain = retrain(ARCHITECTURE, TEXT, VALID, CONFIG, 1, CPU, torch.float32, Checkpoint(tmp_path / "plain", "test"))
    unheard = run(tmp_path / "unheard", weight=0.0)
    assert weights(unheard[0]) == weights(plain[0])
    pd.testing.assert_frame_equal(unheard[1][plain[1].columns], plain[1], check_exact=True)
    assert unheard[2]["start"] == "distill"
    assert weights(result[0]) != weights(plain[0])


def test_the_teacher_is_left_alone(tmp_path):
    teacher = network(TEACHER)
    before = weights(teacher)
    objective = partial(Distillation, teacher=teacher, distill=DistillConfig(0.5, 1.0))
    checkpoint, config = Checkpoint(tmp_path, "test"), dataclasses.replace(CONFIG, steps=5)
    model, history, _ = retrain(
        ARCHITECTURE, TEXT, VALID, config, 1, CPU, torch.float32, checkpoint, objective=objective
    )
    assert weights(teacher) == before and not teacher.training
    assert all(param.grad is None for param in teacher.parameters())
    assert history["divergence"].notna().any()
    assert set(model.state_dict()) == set(LanguageModel(ARCHITECTURE).state_dict())


def test_sigkill_in_the_middle_costs_nothing_but_time(result, tmp_path, capsys):
    kill_at(20, run, tmp_path)
    tensors, values = Checkpoint(tmp_path, "test").load()
    assert values["step"] == 18 and "objective.teacher_memory.2" in tensors
    model, history, _ = run(tmp_path)
    assert "retrain: resuming at step 18/40" in capsys.readouterr().err
    assert weights(model) == weights(result[0])
    pd.testing.assert_frame_equal(history, result[1], check_exact=True)
