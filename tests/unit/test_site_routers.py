"""Routers of pretrained networks: targets, regression and calibration."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from planer.config import LoopConfig
from planer.conversion.counter import counting
from planer.conversion.dynamic import dynamic_layers, make_dynamic, set_selector
from planer.conversion.recording import FrozenPasses, typical_passes, typical_tokens
from planer.conversion.routers import initialise_routers
from planer.conversion.selectors import Selector
from planer.conversion.site_routers import (
    SiteRouterRegression,
    calibrate,
    check_router_hours,
    train_site_routers,
)
from planer.conversion.site_sparsity import prepare_activation
from planer.errors import UserError
from planer.runtime import Runtime
from planer.tensors import read_tensors
from planer.training.checkpoint import Checkpoint
from planer.training.loop import Record

pytest.importorskip("transformers", reason="the package transformers is not installed")

from tests.unit.pretrained_networks import ADAMW, KINDS, network, task_of  # noqa: E402
from tests.unit.tiny_pretrained import NEURONS  # noqa: E402

SIZE, WIDTH = 4, 16
EXPERTS = NEURONS // SIZE


@dataclass(frozen=True)
class Config(LoopConfig):
    width: int = WIDTH
    target: str = "norm"


def config(steps: int = 4, target: str = "norm") -> Config:
    return Config(batch=4, steps=steps, optimizer=ADAMW, log_steps=2, checkpoint_steps=3, target=target)


def split(family: str, target: str = "norm", on: str = "none") -> nn.Module:
    model = network(family)
    prepare_activation(model, on)
    layers = make_dynamic(model, SIZE, WIDTH, target)
    initialise_routers([layer.router for layer in layers], torch.Generator().manual_seed(0))
    return model


def materialised(layer, x: torch.Tensor) -> torch.Tensor:
    """Norm of the output of every expert in double precision: [N, n]."""
    weights, norms = layer._site.weights(), []
    for c in range(EXPERTS):
        expert = weights.neurons(torch.arange(c * SIZE, (c + 1) * SIZE))
        expert = type(expert)(**{k: v if v is None else v.double() for k, v in vars(expert).items()})
        norms.append((expert.hidden(x.double(), layer._site.activation) @ expert.w2).norm(dim=-1))
    return torch.stack(norms, -1).float()


@pytest.mark.parametrize("family", KINDS)
def test_the_loss_is_the_squared_error_of_the_norms_over_real_tokens(family, tmp_path):
    model, task = split(family), task_of(family, tmp_path, config())
    regression, batch, seen = SiteRouterRegression(model, task), task.batch(0), {}
    for layer in dynamic_layers(model):
        layer.register_forward_pre_hook(lambda module, x: seen.update({module.name: x[0]}))
    with regression.watching():
        loss, metrics = regression(FrozenPasses(model, task).loss(None, batch, None), batch, 0)
    expected, typical = [], typical_tokens(model, task, batch)
    for layer in dynamic_layers(model):
        x = seen[layer.name]
        highest = materialised(layer, x[typical]).max()
        tokens = x[batch["attention_mask"].bool()] if family == "bert" else x.flatten(0, 1)
        targets = materialised(layer, tokens).clamp(max=highest)
        expected.append((F.relu(tokens @ layer.router.v1.T) @ layer.router.v2.T).abs().sub(targets).square().mean())
    torch.testing.assert_close(loss, sum(expected) / len(expected), rtol=1e-4, atol=1e-4)
    assert list(metrics) == [f"loss_{layer.name}" for layer in dynamic_layers(model)]


def test_the_first_token_of_a_decoder_does_not_dominate_the_loss(tmp_path):
    """The targets of a huge first token of GPT-2 are cut to the largest norm of other tokens."""
    losses = []
    for scale in (1.0, 1e4):
        model, task = split("gpt2", on="relu"), task_of("gpt2", tmp_path, config())
        with torch.no_grad():
            model.transformer.wpe.weight[0, :8] += scale
            for block in model.transformer.h:
                block.ln_2.register_forward_hook(
                    lambda module, x, y, scale=scale: torch.cat((scale * y[:, :1], y[:, 1:]), 1)
                )
        regression, batch = SiteRouterRegression(model, task), task.batch(0)
        for layer in dynamic_layers(model):
            nn.init.zeros_(layer.router.v2)
        with regression.watching():
            losses.append(regression(FrozenPasses(model, task).loss(None, batch, None), batch, 0)[0].item())
    assert losses[1] < 10 * losses[0]


@pytest.mark.parametrize("target", ["norm", "moefication"])
def test_texts_of_one_token_have_a_loss_in_a_decoder(target, tmp_path):
    model, task = split("gpt2", target, "relu"), task_of("gpt2", tmp_path, config())
    regression = SiteRouterRegression(model, task)
    batch = {name: tensor[:, :1] for name, tensor in task.batch(0).items()}
    with regression.watching():
        loss, _ = regression(FrozenPasses(model, task).loss(None, batch, None), batch, 0)
    assert loss.isfinite() and loss > 0


@pytest.mark.parametrize(("family", "on"), [("bert", "relu"), ("vit", "none"), ("llama", "relu")])
def test_moefication_regresses_the_share_of_the_largest_sum(family, on, tmp_path):
    """The largest of a huge first token does not count in a decoder."""
    model, task = split(family, "moefication", on), task_of(family, tmp_path, config())
    regression, batch, seen = SiteRouterRegression(model, task), task.batch(0), {}
    for layer in dynamic_layers(model):
        if family == "llama":
            layer.register_forward_pre_hook(lambda module, x: torch.cat((9 * x[0][:, :1], x[0][:, 1:]), 1))
        layer.register_forward_pre_hook(lambda module, x: seen.update({module.name: x[0]}))
    with regression.watching():
        loss, _ = regression(FrozenPasses(model, task).loss(None, batch, None), batch, 0)
    expected, others = [], typical_tokens(model, task, batch)[task.real(batch)]
    for layer in dynamic_layers(model):
        x, site = seen[layer.name][task.real(batch)], layer._site
        h = site.hidden(x)
        if family != "bert":
            h = h.abs() * site.weights().w2.norm(dim=1)
        sums = torch.stack([h[:, c * SIZE : (c + 1) * SIZE].sum(1) for c in range(EXPERTS)], 1)
        p = torch.sigmoid(torch.tanh(x @ layer.router.v1.T) @ layer.router.v2.T)
        y = (sums / sums[others].max()).clamp(max=1)
        expected.append(-(y * p.log() + (1 - y) * (1 - p).log()).mean())
    torch.testing.assert_close(loss, sum(expected) / len(expected), rtol=1e-4, atol=1e-5)


def test_moefication_of_a_layer_without_activations_has_a_loss(tmp_path):
    model, task = split("gpt2", "moefication", "relu"), task_of("gpt2", tmp_path, config())
    regression, batch = SiteRouterRegression(model, task), task.batch(0)
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.bias.fill_(-1e6)
    with regression.watching():
        loss, _ = regression(FrozenPasses(model, task).loss(None, batch, None), batch, 0)
    assert loss.isfinite()


@pytest.mark.parametrize("target", ["norm", "moefication"])
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_training_changes_only_routers(family, target, tmp_path):
    settings = config(40, target)
    model, task = split(family, target, "relu"), task_of(family, tmp_path, settings)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    checkpoint = Checkpoint(tmp_path / "routers", "")
    history, metrics = train_site_routers(model, task, settings, Runtime(), Record(checkpoint))
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert all(".replacement." in name for name in changed) and len(changed) == 3 * len(dynamic_layers(model))
    names = [layer.name for layer in dynamic_layers(model)]
    assert {f"captured_top_20_{name}" for name in names} <= set(metrics) and metrics["converted_layers"] == 2
    assert ("r2" in metrics) == (target == "norm")
    assert 0.3 < metrics["captured_top_20"] <= 1
    assert not any("embed" in name for name in read_tensors(checkpoint.path)[0]), "checkpoints have only routers"
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_an_interrupted_run_resumes_with_the_same_bits(tmp_path):
    results = []
    for name, stops in (("whole", (None,)), ("parts", (3, None))):
        for stop in stops:
            model, task = split("vit"), task_of("vit", tmp_path, config(5))
            record = Record(Checkpoint(tmp_path / name, ""), until=stop)
            train_site_routers(model, task, config(5), Runtime(), record)
        results.append(nn.ModuleList(dynamic_layers(model)).state_dict())
    assert all(torch.equal(value, results[1][key]) for key, value in results[0].items())


def test_a_training_that_would_take_too_long_is_refused(tmp_path):
    """The network is not trained for the estimate, and the training's results do not depend on it."""
    results = []
    for checked in (True, False):
        model, task = split("bert"), task_of("bert", tmp_path, config())
        if checked:
            before = {name: value.clone() for name, value in model.named_parameters()}
            with pytest.raises(UserError, match=r"test would take about .* hours on this device for 100,000,000 steps"):
                check_router_hours(model, task, config(100_000_000), Runtime(), max_hours=0.001)
            check_router_hours(model, task, config(), Runtime(), max_hours=1.0)
            assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
            changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
            assert all(".router." in name for name in changed)
        train_site_routers(model, task, config(), Runtime(), Record(Checkpoint(tmp_path / f"{checked}", "")))
        results.append(nn.ModuleList(dynamic_layers(model)).state_dict())
    assert all(torch.equal(value, results[1][key]) for key, value in results[0].items())


@pytest.mark.parametrize("scores", ["router", "oracle"])
@pytest.mark.parametrize("family", KINDS)
def test_calibrated_shares_are_executed_on_the_calibration_tokens(family, scores, tmp_path):
    model, task = split(family), task_of(family, tmp_path)
    calibrate(model, task, 10**6, 0)
    layer = dynamic_layers(model)[0]  # inputs of later layers change when experts are skipped
    for share in (0.2, 0.7, 1.0):
        set_selector(model, Selector("absolute", share, scores))
        with counting(model) as counter:
            for batch in task.batches("train"):
                counter.real = typical_tokens(model, task, batch)
                task.score(model, batch)
        assert counter.shares()[layer.name] == pytest.approx(share, abs=0.02)


def test_calibration_on_part_of_a_split(tmp_path):
    model, task = split("vit"), task_of("vit", tmp_path)
    calibrate(model, task, 7, 0)
    assert all(layer.quantiles.isfinite().all() for layer in dynamic_layers(model))
    assert sum(int(typical.sum()) for _, typical in typical_passes(model, task, "train", 7, 0)) == 7
