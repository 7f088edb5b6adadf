"""The dynamic-k sweep, and the choice of its threshold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import planer
from planer.config import ThresholdConfig
from planer.conversion.thresholds import (
    ThresholdChoice,
    choose_threshold,
    converted_flops,
    nll_name,
    set_threshold,
    threshold_of,
    thresholds,
)
from planer.evaluation.dynamic_k import compare_threshold, dense_flops, score, sweep
from planer.evaluation.quality import quality
from planer.kernels.routing import threshold
from planer.models import LanguageModel, initialise, save
from planer.runtime import Runtime
from planer.specs import Architecture, Attention, DynamicMoE, FeedForward
from planer.tasks.nll import Protocol

pytestmark = pytest.mark.slow
LAYERS = (DynamicMoE(96, 8, 6), DynamicMoE(64, 16, 4))
PROTOCOL = (Protocol(2, 16, 16, same_length=True), Runtime())
TAUS = (0.7, 0.2, 0.05, 0.2, 0.4)


@pytest.fixture(scope="module")
def text() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 20, 300, dtype=np.uint8)


@pytest.fixture
def model() -> LanguageModel:
    model = LanguageModel(Architecture(20, 32, (Attention(2, 16), LAYERS[0], FeedForward(48), LAYERS[1]), init_std=0.1))
    initialise(model, torch.Generator().manual_seed(0))
    return model.eval()


def test_thresholds_rise_and_start_at_zero():
    assert thresholds(TAUS) == [0.0, 0.05, 0.2, 0.4, 0.7]
    assert thresholds(()) == [0.0]


@pytest.mark.parametrize("tau", [0.05, 0.4])
def test_counts_of_experts_equal_those_of_the_routing(model, text, tau):
    chosen = [[] for _ in LAYERS]
    for block, found in zip(model.dynamic_blocks(), chosen, strict=True):
        block.register_forward_pre_hook(
            lambda block, inputs, found=found: found.append(
                threshold(block.router_scores(inputs[0].flatten(0, 1)), tau).sum(1)
            )
        )
    _, experts = score(model, text, tau, *PROTOCOL)
    assert experts == pytest.approx([torch.cat(found).double().mean().item() for found in chosen])
    assert all(1 <= count < layer.num_experts for count, layer in zip(experts, LAYERS, strict=True))


def test_flops_equal_those_of_the_executed_experts(model):
    set_threshold(model, 0.3)
    x, executed = torch.randn(37, 32, generator=torch.Generator().manual_seed(1)), []
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        for block in model.dynamic_blocks():
            executed.append(block(x, ("executed",))[1]["executed"])
    experts = [pairs.item() / 37 for pairs in executed]
    assert converted_flops(LAYERS, experts, 32) * 37 == pytest.approx(counter.get_total_flops())


def test_rows_of_a_sweep(model, text):
    rows = list(sweep(model, text, TAUS, 1e6, *PROTOCOL))
    assert [row["tau"] for row in rows] == thresholds(TAUS)
    dense = dense_flops(LAYERS, 32)
    assert dense == 2 * 2 * 32 * (96 + 64)

    first = rows[0]
    assert first["test"] == quality(model, text, *PROTOCOL)
    assert first["experts_per_layer"] == [12, 4]
    routers = 2 * 6 * (32 + 12) + 2 * 4 * (32 + 4)
    assert first["converted_flops"] == dense + routers
    for row in rows:
        assert row["network_flops"] - row["converted_flops"] == 1e6 - dense
        assert row["converted_flops_ratio"] == pytest.approx(row["converted_flops"] / dense)
        assert row["experts_per_token"] == pytest.approx(sum(row["experts_per_layer"]) / 2)
    flops = [row["converted_flops"] for row in rows]
    assert all(later < earlier for earlier, later in zip(flops, flops[1:], strict=False))


def test_network_without_converted_layers_has_one_row(text):
    model = LanguageModel(Architecture(20, 32, (Attention(2, 16), FeedForward(48))))
    initialise(model, torch.Generator().manual_seed(0))
    (row,) = sweep(model, text, TAUS, 1e6, *PROTOCOL)
    assert row["tau"] == 0 and row["converted_flops"] == 0 and row["network_flops"] == 1e6
    assert row["converted_flops_ratio"] is None and row["experts_per_token"] is None
    assert row["experts_per_layer"] == []
    assert row["test"] == quality(model, text, *PROTOCOL)


def swept(*nlls: float) -> list[dict]:
    """Rows at tau 0, 0.1, 0.2, ...: FLOPs fall."""
    return [{"tau": k / 10, "nll": nll, "flops": 100.0 - k} for k, nll in enumerate(nlls)]


@pytest.mark.parametrize(
    ("nlls", "tau"),
    [
        ((2.0, 2.01, 2.019, 2.3), 0.2),  # tau 0 is as good as the dense network
        ((1.9, 1.91, 1.95, 2.0), 0.1),  # tau 0 is better and becomes the reference
        ((2.1, 2.11, 2.12, 2.3), 0.0),  # sparsification alone lost 5 %
        ((2.0, 2.3, 2.01, 2.4), 0.2),  # nll need not rise with tau
        ((2.0, 2.021), 0.0),
        ((1.0,), 0.0),
    ],
)
def test_the_cheapest_threshold_within_the_tolerance_is_chosen(nlls, tau):
    assert choose_threshold(swept(*nlls), 2.0, 0.01) == tau


@pytest.mark.parametrize("tolerance", [0.0, 1.0])
def test_the_choice_is_made_on_validation_text_and_stored(model, text, tmp_path, tolerance):
    config = ThresholdConfig(taus=TAUS, tolerance=tolerance, batch=2, tgt_len=16, mem_len=16, clamp_len=0)
    metrics = ThresholdChoice(model, text, config, Runtime())(model)
    scored = {tau: quality_at(model, text, tau) for tau in thresholds(TAUS)}
    assert {tau: metrics[nll_name(tau)] for tau in scored} == scored
    assert metrics.keys() == {"tau", *map(nll_name, scored)}
    tau = metrics["tau"]
    assert tau == 0.7 if tolerance else scored[tau] <= scored[0.0]
    save(model, tmp_path)
    loaded = planer.load(tmp_path)
    assert threshold_of(loaded) == tau and {block.tau for block in loaded.dynamic_blocks()} == {tau}


def quality_at(model: LanguageModel, text: np.ndarray, tau: float) -> float:
    return score(model, text, tau, *PROTOCOL)[0]["nll"]


def test_scoring_does_not_change_the_threshold(model, text):
    set_threshold(model, 0.3)
    score(model, text, 0.7, *PROTOCOL)
    assert {block.tau for block in model.dynamic_blocks()} == {0.3}


def test_a_network_without_converted_layers_has_no_threshold(text):
    model = LanguageModel(Architecture(20, 32, (FeedForward(48),)))
    config = ThresholdConfig(taus=TAUS, tolerance=0.1, batch=2, tgt_len=16, mem_len=16, clamp_len=0)
    assert ThresholdChoice(model, text, config, Runtime())(model) == {}
    assert threshold_of(model) == 0


def test_the_choice_is_compared_with_the_dense_network_and_with_tau_0():
    rows = [
        {"tau": 0.0, "test": {"nll": 2.0}, "latency": {"median_ms": 8.0}},
        {"tau": 0.1, "test": {"nll": 2.005}, "latency": {"median_ms": 12.5}},
    ]
    dense = {"test": {"nll": 2.1}, "latency": {"median_ms": 10.0}}
    assert compare_threshold(rows, 0.1, dense) == {
        "tau": 0.1,
        "nll_over_dense": pytest.approx(2.005 / 2.1),
        "nll_over_tau0": pytest.approx(2.005 / 2.0),
        "speed_up_over_dense": 0.8,
    }
    assert compare_threshold(rows, 0.0, dense) is None
