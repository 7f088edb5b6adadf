"""Fine-tuning of pretrained networks."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from planer.config import OptimizerConfig
from planer.config.pretrained import FinetuneConfig
from planer.errors import UserError
from planer.runtime import Runtime
from planer.tasks.make_task import make_task
from planer.training.checkpoint import Checkpoint
from planer.training.finetune import check_hours, finetune
from planer.training.loop import Record
from planer.training.optimizer import make_optimizer

transformers = pytest.importorskip("transformers", reason="the package transformers is not installed")

from tests.unit.tiny_pretrained import SHARED  # noqa: E402
from tests.unit.tiny_tasks import LABELS, save_task  # noqa: E402

ADAMW = OptimizerConfig("adamw", 1e-2, 0.0, 0, (0.9, 0.999), 1e-8, 0.01, 1.0)
CONFIG = FinetuneConfig(batch=4, steps=60, optimizer=ADAMW, log_steps=10, checkpoint_steps=30, accumulate=1)


def network():
    torch.manual_seed(0)
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(**SHARED, num_attention_heads=2, num_labels=LABELS)
    )


def run(folder, config=CONFIG, until=None):
    training, accumulate = config if config.steps else None, config.accumulate
    task = make_task(save_task("labelled_text", folder), training, Runtime(seed=3), "finetune", accumulate=accumulate)
    model = network()
    record = Record(Checkpoint(folder, "test"), until=until)
    return model, task, *finetune(model, task, config, Runtime(seed=3), record)


def test_training_samples_are_learned(tmp_path):
    model, task, history, metrics = run(tmp_path)
    assert task.evaluate(model, "train")["accuracy"] == 1.0 and not model.training
    assert history["loss"].iloc[-1] < 0.5 * history["loss"].iloc[0]
    assert {"valid_accuracy", "valid_nll", "valid_macro_f1", "params", "tokens"} <= metrics.keys()
    assert metrics["tokens"] == 60 * 4


def test_a_resumed_training_ends_with_the_same_bits(tmp_path):
    whole, _, history, _ = run(tmp_path / "whole")
    run(tmp_path / "parts", until=25)
    resumed, _, again, _ = run(tmp_path / "parts")
    assert history.equals(again)
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name


def test_accumulated_steps_equal_those_of_whole_batches(tmp_path, monkeypatch):
    monkeypatch.setitem(SHARED, "hidden_dropout_prob", 0.0)
    monkeypatch.setitem(SHARED, "attention_probs_dropout_prob", 0.0)
    few = dataclasses.replace(CONFIG, steps=4, log_steps=2)
    whole, _, history, metrics = run(tmp_path / "whole", few)
    parts, _, again, others = run(tmp_path / "parts", dataclasses.replace(few, accumulate=2))
    assert again["step"].tolist() == history["step"].tolist() == [2, 4] and others["tokens"] == metrics["tokens"] == 16
    torch.testing.assert_close(
        torch.from_numpy(again.to_numpy()), torch.from_numpy(history.to_numpy()), rtol=1e-3, atol=1e-4
    )
    for name, weight in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], weight, rtol=1e-3, atol=1e-3)


def test_accumulate_must_divide_the_batch():
    with pytest.raises(UserError, match="accumulate is 3; it must divide batch, which is 4"):
        dataclasses.replace(CONFIG, accumulate=3)


def test_zero_steps_do_not_change_the_network(tmp_path):
    model, task, history, metrics = run(tmp_path, dataclasses.replace(CONFIG, steps=0))
    assert len(history) == 0 and metrics["steps"] == 0
    assert metrics["valid_nll"] == task.evaluate(network(), "valid")["nll"]
    for name, weight in network().state_dict().items():
        assert torch.equal(weight, model.state_dict()[name]), name


def test_decay_does_not_change_biases_and_norms():
    model = network()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    optimizer = make_optimizer(model.parameters(), dataclasses.replace(ADAMW, weight_decay=0.5), decay_vectors=False)
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    for name, weight in model.named_parameters():
        expected = before[name] * (1 - 1e-2 * 0.5) if weight.ndim > 1 else before[name]
        torch.testing.assert_close(weight.detach(), expected)


def test_a_training_that_would_take_too_long_is_refused(tmp_path):
    endless = dataclasses.replace(CONFIG, steps=100_000_000)
    task, model = make_task(save_task("labelled_text", tmp_path), endless, Runtime(), "finetune"), network()
    with pytest.raises(UserError, match=r"finetune would take about .* hours on this device for 100,000,000 steps"):
        check_hours(model, task, endless, Runtime(), max_hours=0.001)
    check_hours(model, task, endless, Runtime(), max_hours=1e9)
    for name, weight in network().state_dict().items():
        assert torch.equal(weight, model.state_dict()[name]), name
