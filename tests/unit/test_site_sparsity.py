"""Sparsification of pretrained networks: penalty and fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F

from planer.config import LoopConfig
from planer.conversion.recording import run
from planer.conversion.site_sparsity import SitePenalty, prepare_activation, sparsify_sites, sparsity
from planer.conversion.sites import feed_forward_sites
from planer.runtime import Runtime
from planer.training.checkpoint import Checkpoint
from planer.training.loop import Record
from planer.training.loss import StepLoss

pytest.importorskip("transformers", reason="the package transformers is not installed")

from tests.unit.pretrained_networks import ADAMW, KINDS, network, task_of  # noqa: E402


@dataclass(frozen=True)
class Config(LoopConfig):
    on: str = "relu"
    penalty: str = "hoyer"
    displacement: float = -10.0
    weight: float = 1e-2
    ramp: str = "linear"


def config(steps: int = 4, **changed) -> Config:
    return Config(batch=4, steps=steps, optimizer=ADAMW, log_steps=2, checkpoint_steps=3, **changed)


def penalised(model, task, batch, settings: Config) -> list[torch.Tensor]:
    """The penalised activations of typical tokens, by layer, computed from inputs and weights."""
    inputs, values = {}, []
    sites = feed_forward_sites(model)
    handles = [
        site.entry.register_forward_pre_hook(lambda module, x, site=site: inputs.update({site.name: x[0]}))
        for site in sites
    ]
    task.loss(model, batch, None)
    for handle in handles:
        handle.remove()
    for site in sites:
        w, x = site.weights(), inputs[site.name]
        x = x[:, 1:].flatten(0, 1) if task.facts.kind == "text" else x[task.real(batch)]
        z = F.linear(x, w.w1, w.b1) if w.gate is None else F.linear(x, w.gate, w.gate_bias)
        if settings.on == "relu":
            values.append(z.clamp(min=0))
        elif settings.on == "displaced":
            values.append((z - settings.displacement).clamp(min=0))
        else:
            values.append(site.hidden(x))
    return values


@pytest.mark.parametrize("penalty", ["hoyer", "l1"])
@pytest.mark.parametrize("on", ["relu", "displaced", "none"])
@pytest.mark.parametrize("family", KINDS)
def test_the_penalty_and_its_gradient_equal_the_formula(family, on, penalty, tmp_path):
    settings = config(on=on, penalty=penalty, displacement=-0.5)
    model, task = network(family), task_of(family, tmp_path, settings)
    prepare_activation(model, on)
    term = SitePenalty(model, task, settings)
    with term.watching():
        added, metrics = term(task.loss(model, task.batch(1), None), task.batch(1), 1)
    means = []
    for a in penalised(model, task, task.batch(1), settings):
        total = a.abs().sum(-1)
        means.append((total**2 / (a**2).sum(-1) if penalty == "hoyer" else total).mean())
    expected = sum(means) / len(means)
    torch.testing.assert_close(metrics["penalty"], expected)
    torch.testing.assert_close(added, 1e-2 * 2 / 4 * expected)
    first = feed_forward_sites(model)[0].layer
    weight = next(parameter for parameter in first.parameters() if parameter.ndim == 2)
    ours, theirs = (torch.autograd.grad(loss, weight, retain_graph=True)[0] for loss in (added, 1e-2 / 2 * expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)
    assert ours.abs().max() > 0


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("family", ["bert", "gpt2", "vit"])
def test_parts_of_a_batch_give_the_gradients_of_the_whole_batch(family, parts, tmp_path):
    """Parts are weighted by tokens in the penalty and by texts in the loss, as texts differ in length."""
    settings, found = config(), []
    for number in (1, parts):
        model, task = network(family), task_of(family, tmp_path, settings)
        task.accumulate = number
        prepare_activation(model, "relu")
        term = SitePenalty(model, task, settings)
        with term.watching():
            loss, metrics = StepLoss(model, task, [term], Runtime()).backward(1)
        gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
        found.append((loss, metrics, gradients))
    (loss, metrics, gradients), (summed, means, added) = found
    torch.testing.assert_close(summed, loss)
    expected = {name: float(torch.as_tensor(value).detach()) for name, value in metrics.items()}
    assert {name: float(value) for name, value in means.items()} == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(added, gradients, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("penalty", ["hoyer", "l1"])
def test_texts_of_one_token_have_no_penalty_in_a_decoder(penalty, tmp_path):
    settings = config(penalty=penalty)
    model, task = network("gpt2"), task_of("gpt2", tmp_path, settings)
    term = SitePenalty(model, task, settings)
    batch = {name: tensor[:, :1] for name, tensor in task.batch(0).items()}
    with term.watching():
        run(model, batch)
        added, metrics = term(None, batch, 0)
    added.backward()
    assert added == metrics["penalty"] == 0 and all(torch.as_tensor(value).isfinite() for value in metrics.values())
    assert not model.transformer.h[0].mlp.c_fc.weight.grad.any()


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_fine_tuning_raises_the_sparsity(family, tmp_path):
    settings = config(steps=12, weight=0.3, ramp="none")
    model, task = network(family), task_of(family, tmp_path, settings)
    record = Record(Checkpoint(tmp_path / "checkpoint", ""))
    history, metrics = sparsify_sites(model, task, settings, Runtime(), record)
    assert history["penalty"].iloc[-1] < 0.8 * history["penalty"].iloc[0]
    assert metrics["sparsity"] > metrics["sparsity_before"] and metrics["converted_layers"] == 2
    names = [site.name for site in feed_forward_sites(model)]
    assert {f"sparsity_{name}" for name in names} <= set(metrics) & set(history.columns)
    assert metrics["sparsity"] == pytest.approx(sum(metrics[f"sparsity_{name}"] for name in names) / 2)
    headline = "nll" if family == "llama" else "accuracy"
    assert metrics[f"valid_{headline}"] == pytest.approx(task.evaluate(model, "valid")[headline])
    assert {site.activation for site in feed_forward_sites(model)} == {"relu"} and not model.training
    assert metrics["negligible"] >= metrics["sparsity"]


def test_weight_0_means_no_penalty(tmp_path):
    settings = config(weight=0.0)
    model, task = network("bert"), task_of("bert", tmp_path, settings)
    history, metrics = sparsify_sites(model, task, settings, Runtime(), Record(Checkpoint(tmp_path / "c", "")))
    assert "penalty" not in history and metrics["sparsity"] > 0.2


def test_an_interrupted_run_resumes_with_the_same_bits(tmp_path):
    results = []
    for name, stops in (("whole", (None,)), ("parts", (3, None))):
        settings = config(steps=5)
        for stop in stops:
            model, task = network("gpt2"), task_of("gpt2", tmp_path, settings)
            sparsify_sites(model, task, settings, Runtime(), Record(Checkpoint(tmp_path / name, ""), until=stop))
        results.append(model.state_dict())
    assert all(torch.equal(value, results[1][key]) for key, value in results[0].items())


def test_sparsity_counts_real_tokens(tmp_path):
    model, task = network("bert"), task_of("bert", tmp_path)
    prepare_activation(model, "relu")
    batch = next(task.batches("valid", 5))
    values = penalised(model, task, batch, config())
    shares = sparsity(model, task, "valid")
    assert shares["zero"].tolist() == pytest.approx([(a == 0).double().mean().item() for a in values])


@pytest.mark.parametrize("on", ["displaced", "none"])
def test_autocast_does_not_make_the_penalty_half_precision(on, tmp_path):
    settings = config(on=on, penalty="l1")
    model, task = network("vit"), task_of("vit", tmp_path, settings)
    term, penalties = SitePenalty(model, task, settings), []
    for dtype in (torch.bfloat16, torch.float32):
        with term.watching():
            penalties.append(StepLoss(model, task, [term], Runtime(dtype=dtype))(0)[1]["penalty"])
    assert penalties[0].dtype == torch.float32
    torch.testing.assert_close(*penalties, rtol=3e-3, atol=0)
