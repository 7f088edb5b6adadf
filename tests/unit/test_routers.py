"""Routers of our networks: targets, regression and assessment."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import torch

from planer.config import ClusterConfig, OptimizerConfig, RouterConfig
from planer.conversion import routers
from planer.conversion.assessment import ASSESSED_TAUS, Assessment
from planer.conversion.experts import split
from planer.conversion.norms import output_gram
from planer.conversion.routers import (
    FrozenReading,
    RouterRegression,
    layer_norms,
    train_routers,
    with_routers,
)
from planer.data.texts import Texts
from planer.models import LanguageModel, initialise
from planer.runtime import Runtime
from planer.specs import Architecture, Attention, DynamicMoE, FeedForward
from planer.training.checkpoint import Checkpoint
from planer.training.loop import Record
from planer.training.loss import StepLoss

ADAMW = OptimizerConfig(
    name="adamw", lr=0.01, lr_min=0.001, warmup_steps=0, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0, clip=1.0
)
CONFIG = RouterConfig(
    batch=4, tgt_len=8, mem_len=8, steps=12, optimizer=ADAMW, log_steps=4, checkpoint_steps=5, width=16
)

pytestmark = pytest.mark.slow


def converted(norm: str = "post") -> LanguageModel:
    """A network with two split layers, and large weights so that norms vary between tokens."""
    blocks = (Attention(2, 4), FeedForward(32), Attention(2, 4), FeedForward(16))
    model = LanguageModel(Architecture(11, 8, blocks, norm=norm, init_std=0.5))
    initialise(model, torch.Generator().manual_seed(0))
    return with_routers(split(model, ClusterConfig(4, 1, 10), seed=0)[0], CONFIG.width)


def block(d_inner: int, size: int, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """A split layer with random weights."""
    spec = DynamicMoE(d_inner, size, 4)
    layer = spec.build(Architecture(11, 10, (spec,))).sublayer.to(dtype)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return layer


def text(length: int) -> np.ndarray:
    steps = np.random.default_rng(1).choice([1, 3], size=length, p=[0.8, 0.2])
    return (np.cumsum(steps) % 11).astype(np.uint8)


TEXTS = Texts(11, text(2000), text(500))


def run(model: LanguageModel, folder, on_row=lambda row: None, **changes):
    config = dataclasses.replace(CONFIG, **changes)
    return train_routers(model, TEXTS, config, Runtime(seed=3), Record(Checkpoint(folder, "test"), on_row))


def materialised_norms(layer, x: torch.Tensor) -> torch.Tensor:
    """The norm of every expert's output, computed from the output."""
    size = layer.w1.shape[0] // layer.num_experts
    outputs = []
    for c in range(layer.num_experts):
        own = slice(c * size, (c + 1) * size)
        outputs.append(torch.relu(x @ layer.w1[own].T + layer.b1[own]) @ layer.w2[own])
    return torch.stack(outputs, 1).norm(dim=-1)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
@pytest.mark.parametrize("size", [1, 3, 8, 24])
def test_norms_by_gram_matrices_equal_those_of_the_outputs(size, dtype, tolerance):
    layer = block(24, size, dtype)
    x = torch.randn(50, 10, dtype=dtype, generator=torch.Generator().manual_seed(1))
    x[0] = 0
    expected = materialised_norms(layer, x)
    torch.testing.assert_close(layer_norms(layer, x), expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(
        layer_norms(layer, x, output_gram(layer.w2, layer.num_experts)), expected, rtol=tolerance, atol=tolerance
    )


def test_the_norm_of_a_zero_output_is_not_nan():
    layer = block(4, 4)
    with torch.no_grad():
        layer.w1.copy_(layer.w1[:1].expand(4, -1))
        layer.b1.fill_(1.0)
        layer.w2.copy_(torch.tensor([1.0, -1.0, 1.0, -1.0])[:, None] * layer.w2[:1])
    x = torch.randn(200, 10, generator=torch.Generator().manual_seed(1))
    norms = layer_norms(layer, x)
    assert norms.isfinite().all()
    assert norms.max() < 1e-2 * layer.hidden(x).max()


def test_norms_stay_in_single_precision_under_autocast():
    layer = block(24, 3)
    x = torch.randn(20, 10, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16):
        norms = layer_norms(layer, x)
    assert norms.dtype == torch.float32
    torch.testing.assert_close(norms, materialised_norms(layer, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_the_loss_is_the_mean_squared_error_of_norms(norm):
    model = converted(norm)
    routers.initialise_routers([block.router for block in model.dynamic_blocks()], torch.Generator().manual_seed(0))
    task = FrozenReading(TEXTS, CONFIG, Runtime())
    objective = StepLoss(model, task, [RouterRegression(model)], Runtime())
    objective(step=0)
    loss, metrics = objective(step=1)

    first, second = (task.batches.batch_at(step)[0] for step in (0, 1))
    inner: list[torch.Tensor] = []
    for block in model.dynamic_blocks():
        block.register_forward_pre_hook(lambda module, inputs: inner.append(inputs[0].flatten(0, -2)))
    with torch.no_grad():
        memory = model(first, mem_len=8).state
        inner.clear()
        model(second, memory, mem_len=8)
        errors = []
        for block, x in zip(model.dynamic_blocks(), inner, strict=True):
            scores = (torch.relu(x @ block.router.v1.T) @ block.router.v2.T).abs()
            errors.append((scores - materialised_norms(block, x)).square().mean())
    torch.testing.assert_close(loss.detach(), torch.stack(errors).mean())
    torch.testing.assert_close(metrics["loss_1"].detach(), errors[0])
    torch.testing.assert_close(metrics["loss_3"].detach(), errors[1])


def test_training_changes_only_routers(tmp_path):
    model = converted()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trained, history, metrics = run(model, tmp_path, steps=250, log_steps=50)
    changed = {name for name, tensor in trained.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {f"blocks.{i}.sublayer.router.{v}" for i in (1, 3) for v in ("v1", "v2")}
    assert history["loss"].iloc[-1] < 0.3 * history["loss"].iloc[0]
    assert {"loss_1", "loss_3"} < set(history.columns)
    # Better than always predicting each expert's mean, in every layer.
    assert min(metrics["r2_1"], metrics["r2_3"]) > 0.3
    assert metrics["captured_tau_0.3"] > 0.8
    assert 0.05 < metrics["chosen_tau_0.3"] < metrics["chosen_tau_0.1"] < 1
    assert metrics["converted_layers"] == 2
    assert all(math.isfinite(value) for value in metrics.values())
    assert not trained.training and all(parameter.requires_grad for parameter in trained.parameters())


def test_r2_is_that_of_the_validation_text(tmp_path):
    model, _, metrics = run(converted(), tmp_path)
    scores, norms = [], []
    with torch.no_grad():
        memory = None
        for tokens, _, counted in routers.EvalBatches(text(500), routers.VALID_BATCH, 8, 8):
            output = model(tokens, memory, mem_len=8, wants=("inputs",))
            memory = output.state
            if counted:
                layer, x = model.dynamic_blocks()[0], output.aux[1]["inputs"].flatten(0, 1)
                scores.append(layer.router_scores(x))
                norms.append(materialised_norms(layer, x))
    scores, norms = torch.cat(scores).double(), torch.cat(norms).double()
    r2 = 1 - (scores - norms).square().sum() / (norms - norms.mean(0)).square().sum()
    assert metrics["r2_1"] == pytest.approx(r2.item(), rel=1e-3)


def test_an_interrupted_run_resumes_with_the_same_weights(tmp_path):
    whole, history, metrics = run(converted(), tmp_path / "whole")

    def interrupt(row):
        if row["step"] == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(converted(), tmp_path / "broken", interrupt)
    resumed, resumed_history, resumed_metrics = run(converted(), tmp_path / "broken")
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name
    pd.testing.assert_frame_equal(resumed_history, history, check_exact=True)
    assert resumed_metrics["r2"] == metrics["r2"]


def assessed(scores: torch.Tensor, norms: torch.Tensor) -> dict[str, float]:
    assessment = Assessment()
    for part in zip(scores.split(7), norms.split(7), strict=True):
        assessment.add(*part)
    return assessment.metrics()


def test_assessment_of_perfect_constant_and_zero_routers():
    norms = torch.rand(40, 6, generator=torch.Generator().manual_seed(0))
    perfect = assessed(norms, norms)
    assert perfect["valid_loss"] == 0 and perfect["r2"] == 1
    for tau in ASSESSED_TAUS:
        assert perfect[f"captured_tau_{tau}"] == pytest.approx(1)
        assert perfect[f"chosen_tau_{tau}"] == perfect[f"oracle_tau_{tau}"] < 1
    assert assessed(norms.mean(0).expand_as(norms), norms)["r2"] == pytest.approx(0, abs=1e-6)
    zero = assessed(torch.zeros_like(norms), norms)
    assert zero["r2"] < 0
    assert zero["chosen_tau_0.1"] == 1 and zero["captured_tau_0.1"] == pytest.approx(1)
    dead = assessed(norms, torch.zeros_like(norms))
    assert all(math.isfinite(value) for value in dead.values())


def test_the_captured_share_is_relative_to_the_best_experts_of_equal_number():
    norms = torch.tensor([[8.0, 4.0, 1.0, 3.0]])
    scores = torch.tensor([[0.0, 5.0, 0.1, 5.0]])  # experts 1 and 3 have 7 of at most 12
    metrics = assessed(scores, norms)
    assert metrics["captured_tau_0.3"] == pytest.approx(7 / 12)
    assert metrics["chosen_tau_0.3"] == 0.5
    assert metrics["oracle_tau_0.3"] == 0.75


def test_network_without_split_layers_is_returned(tmp_path):
    model = LanguageModel(Architecture(11, 8, (Attention(2, 4), FeedForward(16))))
    same, history, metrics = run(model, tmp_path)
    assert same is model
    assert history.empty
    assert metrics == {"converted_layers": 0, "reason": metrics["reason"]}
