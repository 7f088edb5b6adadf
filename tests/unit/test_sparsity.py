"""Sparsification of our networks: penalties, ramp and fine-tuning."""

from __future__ import annotations

import copy
import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planer.config import OptimizerConfig, SparsifyConfig
from planer.conversion.penalties import l1, ramp, square_hoyer
from planer.conversion.sparsity import SparsityPenalty, sparsify
from planer.data.texts import Texts
from planer.models import LanguageModel, initialise
from planer.runtime import Runtime
from planer.specs import Architecture, Attention, FeedForward, MoE
from planer.tasks.causal_lm import CausalLM
from planer.training.checkpoint import Checkpoint
from planer.training.distillation import Distillation
from planer.training.loop import Record
from planer.training.loss import StepLoss
from planer.training.teacher import LiveTeacher
from planer.training.terms import Balance, Term

ADAMW = OptimizerConfig(
    name="adamw", lr=0.01, lr_min=0.001, warmup_steps=0, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0, clip=1.0
)
CONFIG = SparsifyConfig(
    batch=4,
    tgt_len=8,
    mem_len=8,
    steps=12,
    optimizer=ADAMW,
    log_steps=4,
    checkpoint_steps=5,
    penalty="hoyer",
    weight=0.5,
    ramp="linear",
    balance_weight=0.01,
)

pytestmark = pytest.mark.slow


def tiny(*blocks, dropout: float = 0.1) -> LanguageModel:
    """A network with large random weights."""
    architecture = Architecture(11, 8, blocks, dropout=dropout, moe_dropout=dropout, init_std=0.3)
    model = LanguageModel(architecture)
    initialise(model, torch.Generator().manual_seed(0))
    return model.eval()


def text(length: int) -> np.ndarray:
    """Tokens that the last token partly predicts."""
    generator = np.random.default_rng(1)
    steps = generator.choice([1, 3], size=length, p=[0.8, 0.2])
    return (np.cumsum(steps) % 11).astype(np.uint8)


CPU = Runtime()
TEXTS = Texts(11, text(2000), text(500))


def objective_of(model: LanguageModel, config=CONFIG, terms=(), runtime=CPU) -> StepLoss:
    """The loss that ``sparsify`` trains with."""
    terms = [*terms, Balance(config.balance_weight), SparsityPenalty(config)]
    return StepLoss(model.train(), CausalLM(TEXTS, config, runtime), terms, runtime)


def run(model: LanguageModel, folder, on_row=lambda row: None, terms=(), **changes):
    config = dataclasses.replace(CONFIG, **changes)
    return sparsify(model, TEXTS, config, Runtime(seed=3), Record(Checkpoint(folder, "test"), on_row), terms)


@pytest.mark.parametrize("width", [1, 2, 7, 512])
def test_hoyer_of_equal_activations_is_their_number(width):
    one_hot = torch.zeros(width)
    one_hot[width // 2] = 3.0
    half = torch.zeros(2 * width)
    half[::2] = 0.2
    assert square_hoyer(one_hot).item() == pytest.approx(1, rel=1e-6)
    assert square_hoyer(torch.full((width,), 0.7)).item() == pytest.approx(width, rel=1e-6)
    assert square_hoyer(half).item() == pytest.approx(width, rel=1e-6)


@given(st.integers(1, 40), st.integers(0, 2**31), st.floats(1e-3, 1e3))
@settings(max_examples=50)
def test_hoyer_is_bounded_and_does_not_depend_on_scale(width, seed, scale):
    a = torch.rand(width, generator=torch.Generator().manual_seed(seed)) + 1e-3
    value = square_hoyer(a).item()
    assert 1 - 1e-5 <= value <= width * (1 + 1e-5)
    assert square_hoyer(scale * a).item() == pytest.approx(value, rel=1e-5)
    assert l1(scale * a).item() == pytest.approx(scale * l1(a).item(), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("penalty", [square_hoyer, l1])
def test_tokens_of_zero_activations_have_penalty_0_and_a_finite_gradient(penalty, dtype):
    a = torch.zeros(3, 16, dtype=dtype)
    a[1] = 1.0
    a.requires_grad_()
    value = penalty(a)
    value.sum().backward()
    assert value.dtype == torch.float32
    assert value.tolist() == [0, 16, 0]
    assert a.grad.isfinite().all()
    assert not a.grad[0].any()


def test_hoyer_of_half_precision_is_computed_in_single_precision():
    a = torch.rand(5, 3000).to(torch.float16) * 100  # the squared sum, about 2e10, exceeds half precision
    torch.testing.assert_close(square_hoyer(a), square_hoyer(a.double()).float())


def test_the_gradient_of_hoyer_equals_finite_differences():
    a = torch.rand(4, 6, dtype=torch.float64) + 0.1
    assert torch.autograd.gradcheck(square_hoyer, a.requires_grad_())


def test_values_of_the_ramps():
    assert [ramp("none", t, 10) for t in (1, 10)] == [1, 1]
    assert [ramp("linear", t, 10) for t in (1, 5, 10)] == [0.1, 0.5, 1]
    assert [ramp("linear_warmup", t, 10) for t in (1, 4, 5, 6, 10)] == [0.2, 0.8, 1, 1, 1]
    assert [ramp("linear_warmup", t, 5) for t in (1, 2, 3)] == [0.5, 1, 1]
    assert [ramp(kind, 1, 1) for kind in ("none", "linear", "linear_warmup")] == [1, 1, 1]
    with pytest.raises(ValueError, match="cosine"):
        ramp("cosine", 1, 10)


@pytest.mark.parametrize(("name", "penalty"), [("hoyer", square_hoyer), ("l1", l1)])
def test_loss_is_cross_entropy_plus_the_mean_penalty_of_tokens_and_layers(name, penalty):
    model = tiny(FeedForward(24), FeedForward(16), dropout=0.0)
    config = dataclasses.replace(CONFIG, penalty=name, weight=0.25)
    objective = objective_of(model, config)
    loss, metrics = objective(step=2)

    tokens, targets = objective.task.batches.batch_at(2)
    x, penalties, zeros = model.embed(tokens), [], []
    for block in model.blocks:
        hidden = torch.relu(block.sublayer.w1(x))
        penalties += [penalty(token) for token in hidden.flatten(0, 1)]
        zeros.append((hidden == 0).float().mean())
        x = block.norm(x + block.sublayer.w2(hidden))
    mean = (sum(penalties[:32]) / 32 + sum(penalties[32:]) / 32) / 2
    nll = model.nll(x, targets).mean()
    alpha = 0.25 * 3 / 12
    torch.testing.assert_close(loss, nll + alpha * mean)
    torch.testing.assert_close(metrics["penalty"], mean)
    torch.testing.assert_close(torch.stack([metrics["sparsity_0"], metrics["sparsity_1"]]), torch.stack(zeros))
    assert metrics["alpha"] == pytest.approx(alpha)


def by_teacher(parent: LanguageModel, weight: float = 0.5, temperature: float = 2.0) -> list[Term]:
    return [Distillation(LiveTeacher(parent, CONFIG.mem_len), weight, temperature)]


def test_with_a_teacher_the_penalty_is_added_to_the_distillation_loss():
    """The teacher has the weights of the student and does not change with it."""
    blocks = (Attention(2, 4), FeedForward(24), MoE(8, 2, 1))
    parent, options = tiny(*blocks, dropout=0.0), {"weight": 0.3, "temperature": 2.0}
    objective = objective_of(tiny(*blocks, dropout=0.0), terms=by_teacher(parent, **options))
    with torch.no_grad():
        for parameter in objective.model.parameters():
            parameter *= 0.9
    model = copy.deepcopy(objective.model)
    terms = [*by_teacher(tiny(*blocks, dropout=0.0), **options), Balance(0.01)]
    reference = StepLoss(model, CausalLM(TEXTS, CONFIG, Runtime()), terms, Runtime())
    for step in range(3):
        loss, metrics = objective(step)
        expected, other = reference(step)
        torch.testing.assert_close(loss, expected + metrics["alpha"] * metrics["penalty"])
        assert metrics["divergence"] == other["divergence"] > 1e-3 and metrics["penalty"] > 0
    loss.backward()
    assert all(parameter.grad is None for parameter in parent.parameters()) and not parent.training


def test_an_interrupted_run_with_a_teacher_resumes_with_the_same_bits(tmp_path):
    blocks = (Attention(2, 4), FeedForward(16))

    def start(folder, on_row=lambda row: None):
        return run(tiny(*blocks), folder, on_row, terms=by_teacher(tiny(*blocks)))

    def interrupt(row):
        if row["step"] == 8:
            raise KeyboardInterrupt

    whole, history, metrics = start(tmp_path / "whole")
    assert {"divergence", "penalty", "sparsity_1"} < set(history.columns) and metrics["converted_layers"] == 1
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path / "broken", interrupt)
    resumed, resumed_history, _ = start(tmp_path / "broken")
    assert all(torch.equal(resumed.state_dict()[name], tensor) for name, tensor in whole.state_dict().items())
    pd.testing.assert_frame_equal(resumed_history, history, check_exact=True)


def test_a_teacher_keeps_the_network_closer_to_itself(tmp_path):
    blocks = (Attention(2, 4), FeedForward(32))
    inputs, drifts = torch.from_numpy(text(200).astype(np.int64))[None], []
    for terms in ([], by_teacher(tiny(*blocks), weight=1.0, temperature=1.0)):
        model, _, _ = run(tiny(*blocks), tmp_path / str(len(drifts)), terms=terms, steps=40)
        with torch.no_grad():
            own, wanted = (one.logits(one(inputs, mem_len=0).hidden).log_softmax(-1) for one in (model, tiny(*blocks)))
        drifts.append((wanted.exp() * (wanted - own)).sum(-1).mean().item())
    assert drifts[1] < 0.5 * drifts[0]


def test_penalty_under_bfloat16_matches_single_precision():
    losses = []
    for dtype in (torch.float32, torch.bfloat16):
        objective = objective_of(tiny(FeedForward(24), dropout=0.0), runtime=Runtime(dtype=dtype))
        _, metrics = objective(step=0)
        assert metrics["penalty"].dtype == torch.float32
        losses.append(metrics["penalty"].item())
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_fine_tuning_makes_activations_sparser_than_without_penalty(tmp_path):
    blocks = (Attention(2, 4), FeedForward(32), MoE(8, 2, 1), FeedForward(16))
    results = {}
    for weight in (0.0, 1.0):
        model, history, metrics = run(tiny(*blocks), tmp_path / str(weight), weight=weight, steps=60, log_steps=20)
        results[weight] = history, metrics
        assert not model.training
    history, metrics = results[1.0]
    assert metrics["sparsity_before"] == results[0.0][1]["sparsity_before"]
    assert metrics["sparsity"] > results[0.0][1]["sparsity"] + 0.1
    assert metrics["sparsity"] == pytest.approx((metrics["sparsity_1"] + metrics["sparsity_3"]) / 2)
    assert history["penalty"].iloc[-1] < 0.7 * history["penalty"].iloc[0]
    assert {"nll", "balance", "alpha", "sparsity_1", "sparsity_3"} < set(history.columns)
    assert history["alpha"].iloc[-1] == pytest.approx(np.mean([t / 60 for t in range(41, 61)]))
    assert metrics["converted_layers"] == 2
    assert all(math.isfinite(value) for value in metrics.values())


def test_an_interrupted_run_resumes_with_the_same_bits(tmp_path):
    blocks = (Attention(2, 4), FeedForward(16))
    whole, history, metrics = run(tiny(*blocks), tmp_path / "whole")

    def interrupt(row):
        if row["step"] == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tiny(*blocks), tmp_path / "broken", interrupt)
    resumed, resumed_history, resumed_metrics = run(tiny(*blocks), tmp_path / "broken")
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name
    pd.testing.assert_frame_equal(resumed_history, history, check_exact=True)
    assert resumed_metrics["valid_nll_before"] == metrics["valid_nll_before"]


def test_network_without_feed_forward_layers_is_returned(tmp_path):
    model = tiny(Attention(2, 4), MoE(8, 2, 1))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    same, history, metrics = run(model, tmp_path)
    assert same is model
    assert all(torch.equal(same.state_dict()[name], tensor) for name, tensor in before.items())
    assert history.empty
    assert metrics == {"converted_layers": 0, "reason": metrics["reason"]}
    assert "sm1" in metrics["reason"]
