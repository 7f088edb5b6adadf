"""Thresholds on neurons of pretrained networks, and their calibration."""

from __future__ import annotations

import copy
import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from planer.conversion import neuron_threshold as module
from planer.conversion.counter import counting
from planer.conversion.neuron_threshold import Curve, Thresholds, calibrate, greedy_shares, layer_losses, score_curves
from planer.conversion.recording import typical_tokens
from planer.conversion.sites import feed_forward_sites
from planer.conversion.threshold_layer import ThresholdFeedForward, apply_thresholds
from planer.errors import UserError

transformers = pytest.importorskip("transformers", reason="the package transformers is not installed")

from tests.unit.pretrained_networks import KINDS, network, task_of  # noqa: E402
from tests.unit.tiny_pretrained import LAYERS, NEURONS, WIDTH, inputs, logits, tiny  # noqa: E402

SCORES = ("gate", "product")


def names(model: nn.Module) -> list[str]:
    return [site.name for site in feed_forward_sites(model)]


def thresholded(family: str, score: str, theta: float = 0.5, relu: bool = False) -> nn.Module:
    model = tiny(family)
    if relu:
        feed_forward_sites(model)[0].adapter.use_relu(model)
    apply_thresholds(model, dict.fromkeys(names(model), theta), score)
    return model


class Definition(nn.Module):
    """The layer as a loop over neurons in double precision."""

    def __init__(self, site, theta: float, score: str):
        super().__init__()
        given = vars(site.weights()).items()
        self.weights = type(site.weights())(**{k: None if v is None else v.detach().double() for k, v in given})
        self.site, self.theta, self.score = [site], theta, score

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        w, (site,) = self.weights, self.site
        h = w.hidden(x.double(), site.activation)
        size = h.abs() * w.w2.norm(dim=1)
        if self.score == "gate":
            size = (
                h.abs()
                if w.gate is None
                else getattr(F, site.activation)(F.linear(x.double(), w.gate, w.gate_bias)).abs()
            )
        y = sum((h[..., j] * (size[..., j] > self.theta))[..., None] * w.w2[j] for j in range(NEURONS))
        return (y if w.b2 is None else y + w.b2).to(x.dtype)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("family", KINDS)
def test_layers_equal_a_loop_over_the_neurons_above_the_threshold(family, score):
    model, expected = thresholded(family, score), tiny(family)
    for site in feed_forward_sites(expected):
        site.replace(Definition(site, 0.5, score))
    with counting(model) as counter:
        found = logits(model, inputs(family))
    torch.testing.assert_close(found, logits(expected, inputs(family)), rtol=1e-4, atol=1e-4)
    assert all(0.1 < share < 0.9 for share in counter.shares().values()) and counter.names == names(model)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("family", KINDS)
def test_a_threshold_of_zero_equals_the_dense_network(family, score):
    model = thresholded(family, score, 0.0)
    with counting(model) as counter:
        torch.testing.assert_close(logits(model, inputs(family)), logits(tiny(family), inputs(family)))
    assert set(counter.shares().values()) == {1.0}
    relu, plain = thresholded(family, score, 0.0, relu=True), tiny(family)
    feed_forward_sites(plain)[0].adapter.use_relu(plain)
    with counting(relu) as counter:
        torch.testing.assert_close(logits(relu, inputs(family)), logits(plain, inputs(family)), rtol=1e-5, atol=1e-5)
    assert all(0 < share < 1 for share in counter.shares().values()), "zeros of ReLU are left out"


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_decoding_token_by_token_equals_a_pass_over_the_text(family, score):
    model, ids = thresholded(family, score), inputs(family)
    whole, cache, steps = logits(model, ids), transformers.DynamicCache(), []
    with torch.no_grad():
        for t in range(ids.shape[1]):
            steps.append(model(ids[:, t : t + 1], cache=cache, use_cache=True).logits)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, rtol=1e-4, atol=1e-5)


def test_padding_does_not_change_outputs_and_is_not_counted(tmp_path):
    model, task = network("bert"), task_of("bert", tmp_path)
    apply_thresholds(model, dict.fromkeys(names(model), 0.5), "product")
    (together,) = task.batches("valid", task.size("valid"))
    found = []
    for batches in ([together], list(task.batches("valid", 1))):
        with counting(model) as counter, torch.no_grad():
            outputs = []
            for batch in batches:
                counter.real = task.real(batch)
                outputs.append(model(**{k: v for k, v in batch.items() if k != "labels"}).logits)
        found.append((torch.cat(outputs), [counter.histogram(name).tolist() for name in counter.names]))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-4, atol=1e-5)
    assert found[0][1] == found[1][1]


def test_weights_keep_their_names_and_copies_are_independent():
    model = thresholded("llama", "product")
    before = tiny("llama").state_dict()
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    twin = copy.deepcopy(model)
    expected = logits(model, inputs("llama"))
    apply_thresholds(model, dict.fromkeys(names(model), 1e6), "product")
    torch.testing.assert_close(logits(twin, inputs("llama")), expected)
    assert (logits(model, inputs("llama")) - expected).abs().max() > 1e-2


def test_wrong_thresholds_are_refused():
    model = tiny("gpt2")
    first, second = names(model)
    with pytest.raises(UserError, match=f"{second} has no theta"):
        apply_thresholds(model, {first: 0.1}, "gate")
    with pytest.raises(UserError, match="a.mlp is no feed-forward layer of this network"):
        apply_thresholds(model, {first: 0.1, second: 0.1, "a.mlp": 0.1}, "gate")
    with pytest.raises(UserError, match="score is 'up'; allowed: gate, product"):
        apply_thresholds(model, {first: 0.1, second: 0.1}, "up")
    for theta in (-1.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match=f"theta of {first} is {theta:g}; allowed: numbers from 0"):
            apply_thresholds(model, {first: theta, second: 0.1}, "gate")
    apply_thresholds(model, {first: 0.1, second: 0.1}, "gate")
    with pytest.raises(ValueError, match="leaves out neurons, which is for inference"):
        logits(model.train(), inputs("gpt2"))


def test_training_without_thresholds_has_gradients():
    model = thresholded("llama", "gate", 0.0).train()
    model(inputs("llama")).logits.sum().backward()
    assert all(site.weights().w1.grad.abs().max() > 0 for site in feed_forward_sites(model))


def test_a_curve_has_the_quantiles_of_the_scores():
    generator = torch.Generator().manual_seed(0)
    scores, curve = torch.randn(200, NEURONS, generator=generator).abs(), Curve()
    for part in scores.split(50):
        curve.add(part, part.square())
    for share in (0.05, 0.3, 0.5, 0.9):
        theta = curve.theta(share)
        assert theta == pytest.approx(float(scores.flatten().quantile(1 - share)), rel=0.02)
        dropped = float(scores[scores <= theta].square().sum() / scores.square().sum())
        assert curve.dropped(share) == pytest.approx(dropped, rel=1e-3)
        assert curve.density(share) == pytest.approx(float((scores > theta).float().mean()), abs=1e-3)
    assert curve.theta(1.0) == 0 and curve.dropped(1.0) == 0 and curve.active == 1 == curve.density(1.0)


def test_a_curve_of_mostly_zeros():
    scores, curve = torch.zeros(100, NEURONS), Curve()
    scores[:25] = 1 + torch.rand(25, NEURONS, generator=torch.Generator().manual_seed(0))
    curve.add(scores, scores)
    assert curve.active == 0.25 and curve.theta(0.5) == 0 and curve.theta(0.1) > 1
    assert curve.density(0.5) == 0.25 and curve.density(0.1) == pytest.approx(0.1, abs=0.01)


def config(score: str = "product", allocation: str = "uniform", shares=(0.3, 0.7), tokens: int = 10_000):
    return SimpleNamespace(score=score, tokens=tokens, shares=shares, allocation=allocation)


def shares_of(model: nn.Module, task, thetas: dict, score: str) -> dict[str, float]:
    """Shares of neurons that run for typical training tokens, by layer."""
    apply_thresholds(model, thetas, score)
    with counting(model) as counter, torch.no_grad():
        for batch in task.batches("train"):
            counter.real = typical_tokens(model, task, batch)
            model(**{k: v for k, v in batch.items() if k != "labels"})
    return counter.shares()


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("family", KINDS)
def test_the_calibrated_first_layer_runs_the_wanted_share(family, score, tmp_path):
    """The inputs of later layers change, so their shares differ a little."""
    model, task = network(family), task_of(family, tmp_path)
    expected = task.scores(model, "test").nll
    found = calibrate(model, task, config(score), 3)
    np.testing.assert_allclose(task.scores(model, "test").nll, expected, rtol=1e-5)
    assert calibrate(network(family), task, config(score), 3) == found
    for share, thetas in found.thetas.items():
        executed = shares_of(model, task, thetas, score)
        first = names(model)[0]
        assert executed[first] == pytest.approx(share, abs=0.02)
        assert executed[first] == pytest.approx(found.densities[share][first], abs=0.02)
        assert all(abs(own - share) < 0.15 for own in executed.values())
    assert Thresholds.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_the_first_token_of_a_text_does_not_change_thresholds(tmp_path):
    """A learned position makes the activations of the first token large, as in attention sinks."""
    model, outlier, task = network("gpt2"), network("gpt2"), task_of("gpt2", tmp_path)
    with torch.no_grad():
        for one in (model, outlier):
            for block in one.transformer.h:
                block.attn.c_proj.weight.zero_()  # no token depends on another
        outlier.transformer.wpe.weight[0] *= torch.linspace(-1e4, 1e4, WIDTH)
    assert calibrate(outlier, task, config(), 3).thetas == calibrate(model, task, config(), 3).thetas


def test_losses_of_layers_are_divergences_of_networks_with_one_threshold(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LOSS_TOKENS", 1)
    for family in ("llama", "bert"):
        task, settings = task_of(family, tmp_path / family), config()
        curves = score_curves(network(family), task, settings, 1)
        losses = layer_losses(network(family), task, settings, curves, 1)
        for name in curves:
            theta, total, count = curves[name].theta(0.5), 0.0, 0
            one = network(family)
            apply_thresholds(one, dict.fromkeys(curves, 0.0) | {name: theta}, "product")
            for batch in task.batches("train", 1):
                given, p = {k: v for k, v in batch.items() if k != "labels"}, []
                for model in (network(family), one):
                    with torch.no_grad():
                        p.append(model(**given).logits.flatten(0, -2).double().softmax(-1))
                total += float((p[0] * (p[0] / p[1]).log()).sum())
                count += len(p[0])
            assert losses[name] == pytest.approx(total / count / curves[name].dropped(0.5), rel=1e-3)


def quadratic(scale: float, neurons: int = 4096) -> Curve:
    curve = Curve()
    scores = torch.linspace(0.01, 1, neurons)[None] * scale
    curve.add(scores, scores.square())
    return curve


def test_greedy_shares_have_the_lowest_loss():
    """Of all combinations of three layers on a grid.  The scale of scores has no effect."""
    curves = {"a": quadratic(1), "b": quadratic(5), "c": quadratic(1)}
    losses = {"a": 1.0, "b": 20.0, "c": 0.1}
    for share in (0.25, 0.5, 0.75):
        found = greedy_shares(curves, losses, share)
        assert np.mean(list(found.values())) == pytest.approx(share, abs=1 / 32)
        assert found["b"] > found["a"] >= found["c"] and found["b"] > 0.5
        table = {name: {k: losses[name] * curves[name].dropped(k / 32) for k in range(33)} for name in curves}
        total = round(32 * sum(found.values()))
        best = min(
            table["a"][a] + table["b"][b] + table["c"][total - a - b]
            for a, b in itertools.product(range(33), range(33))
            if 0 <= total - a - b <= 32
        )
        assert sum(table[name][round(32 * own)] for name, own in found.items()) == pytest.approx(best, rel=1e-6)


def test_greedy_shares_are_a_mean_over_neurons():
    """A layer of a quarter of the neurons, with a quarter of the loss, has the same share as the other."""
    curves = {"large": quadratic(1, 8192), "small": quadratic(1, 2048)}
    for share in (0.25, 0.5, 0.75):
        found = greedy_shares(curves, {"large": 4.0, "small": 1.0}, share)
        assert (4 * found["large"] + found["small"]) / 5 == pytest.approx(share, abs=1 / 32)
        assert found["large"] == pytest.approx(found["small"], abs=2 / 32)


def test_greedy_calibration_gives_a_weak_layer_few_neurons(tmp_path):
    """The output of the second layer is divided by a thousand."""
    model, task = network("llama"), task_of("llama", tmp_path)
    first, second = names(model)
    with torch.no_grad():
        feed_forward_sites(model)[1].weights().w2.mul_(1e-3)
    found = calibrate(model, task, config(allocation="greedy", shares=(0.5,)), 3)
    executed = shares_of(model, task, found.thetas[0.5], "product")
    assert executed[second] < 0.2 < 0.8 < executed[first]


def test_every_feed_forward_layer_is_replaced():
    model = thresholded("vit", "gate")
    assert sum(isinstance(layer, ThresholdFeedForward) for layer in model.modules()) == LAYERS
