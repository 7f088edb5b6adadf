"""Projections of our own networks as experts: the same function, what a threshold runs and costs, their training."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from test_own_projections import ADAMW, CONFIG, HEADS, TEXTS, WIDTH, logits
from torch.utils.flop_counter import FlopCounterMode

from planer import models
from planer.blocks.block import of_layers
from planer.config import ClusterConfig, RouterConfig, SparsifyConfig, ThresholdConfig
from planer.conversion.experts import split
from planer.conversion.own_projections import distil_own_projections, with_mlps
from planer.conversion.routers import train_routers, with_routers
from planer.conversion.sparsity import SparsityPenalty, sparsify
from planer.conversion.thresholds import (
    Executed,
    ThresholdChoice,
    converted_flops,
    set_threshold,
    store_threshold,
    threshold_of,
)
from planer.evaluation.dynamic_k import dense_flops, sweep
from planer.kernels.routing import threshold
from planer.models import LanguageModel, initialise
from planer.models.decoder import start
from planer.runtime import Runtime
from planer.specs import Architecture, Attention, DynamicMlpAttention, FeedForward
from planer.tasks.causal_lm import CausalLM
from planer.tasks.nll import Protocol
from planer.training.checkpoint import Checkpoint
from planer.training.loop import Record

NAMES = ["0_query", "0_key", "0_value", "0_output", "1"]
CLUSTERS = ClusterConfig(4, 1, 10)
SPARSIFY = SparsifyConfig(4, 4, ADAMW, 2, 4, 8, 8, penalty="hoyer", weight=0.1, ramp="none", balance_weight=0.0)
ROUTERS = RouterConfig(4, 60, ADAMW, 10, 25, 8, 8, width=6)


def replaced(norm: str = "post") -> LanguageModel:
    """An attention with MLPs of 8 neurons, and a feed-forward layer of 32."""
    dense = LanguageModel(Architecture(11, WIDTH, (Attention(HEADS, 8), FeedForward(32)), norm=norm, init_std=0.5))
    initialise(dense, torch.Generator().manual_seed(0))
    model, generator = with_mlps(dense, 1.0), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in model.feed_forward_blocks():
            for weight in layer.parameters():
                weight.normal_(0, 0.5, generator=generator)
    return model


def converted(norm: str = "post") -> LanguageModel:
    """The same in experts of 4 neurons, with random routers."""
    model, generator = with_routers(split(replaced(norm), CLUSTERS, seed=0)[0], ROUTERS.width), torch.Generator()
    with torch.no_grad():
        for layer in model.dynamic_blocks():
            for weight in layer.router.parameters():
                weight.normal_(generator=generator.manual_seed(weight.numel()))
    return model


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_with_all_experts_the_network_computes_the_same(norm):
    model = replaced(norm)
    made, labels, metrics = split(model, CLUSTERS, seed=0)
    assert made.architecture.blocks[0] == DynamicMlpAttention(HEADS, 8, WIDTH // 2, 4)
    assert made.architecture.pattern == "e2d4" and metrics["converted_layers"] == 5
    assert {name for name in metrics if "scatter" in name} == {f"scatter_{name}" for name in NAMES}
    sizes = labels.groupby(["layer", "projection"], dropna=False).size()
    assert sizes.tolist() == [8] * 4 + [32] and labels["projection"].notna().sum() == 32
    for mode in ("recompute", "cached"):
        torch.testing.assert_close(logits(made, mode), logits(model, mode), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["recompute", "cached"])
def test_every_token_runs_its_own_experts_of_every_projection(mode):
    model, tau, seen = converted(), 0.4, []
    for layer in model.dynamic_blocks():
        layer.register_forward_hook(lambda layer, inputs, result: seen.append((layer, inputs[0], result[0])))
    set_threshold(model, tau)
    logits(model, mode)
    assert len(seen) == 3 * len(NAMES)
    shares = []
    for layer, x, y in seen:
        for token, found in zip(x.flatten(0, -2), y.flatten(0, -2), strict=True):
            scores = layer.router(token)
            chosen = [c for c in range(layer.num_experts) if scores[c] >= tau * scores.max()]
            expected = layer.b2
            for rows in (slice(4 * c, 4 * c + 4) for c in chosen):
                expected = expected + torch.relu(layer.w1[rows] @ token + layer.b1[rows]) @ layer.w2[rows]
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
            shares.append(len(chosen) / layer.num_experts)
    assert {0.5, 1.0} < set(shares)


def test_cached_keys_and_single_tokens_give_the_same_as_segments():
    model = converted()
    set_threshold(model, 0.4)
    expected = logits(model)
    torch.testing.assert_close(logits(model, "cached"), expected, rtol=1e-5, atol=1e-5)
    tokens = torch.from_numpy(TEXTS.valid[:8])[None]
    with torch.inference_mode():
        whole = model(tokens, mem_len=8, attention="cached")
        state = model(tokens[:, :5], mem_len=8, attention="cached").state
        read = start(model, [state], 3, mem_len=8, clamp_len=0)
        found = torch.stack([read(tokens[:, place]) for place in range(5, 8)], 1)
        torch.testing.assert_close(found, model.log_probs(whole.hidden)[:, 5:], rtol=1e-4, atol=1e-4)


def test_the_specification_counts_what_the_block_has():
    model = converted()
    attention, feed_forward = model.architecture.blocks
    assert model.architecture.params() == sum(weight.numel() for weight in model.parameters())
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        for layer in model.dynamic_blocks()[:4]:
            layer(torch.zeros(1, WIDTH))
            layer.router(torch.zeros(1, WIDTH))
    cached, recomputed = (attention.flops(WIDTH, 1, 8, 8, mode) for mode in ("cached", "recompute"))
    mlps, scores = counter.get_total_flops(), 3 * 2 * 16 * WIDTH
    assert cached == mlps + scores
    assert recomputed == mlps * (2 + 2 * 2) / 4 + scores + 2 * WIDTH * WIDTH * 2, "memory as long as the segment"
    dense = Attention(HEADS, 8)
    for reads, mode in ((1.0, "cached"), (2.0, "recompute")):
        assert attention.unconverted_flops(WIDTH, reads) == dense._projection_flops(WIDTH, 8, 8, mode)
    assert feed_forward.unconverted_flops(WIDTH) == FeedForward(32).flops(WIDTH, 1, 1, 0, "cached")


def test_experts_of_other_widths_are_refused():
    with pytest.raises(ValueError, match="the heads are 8 wide; experts need the width of the network"):
        LanguageModel(Architecture(11, WIDTH, (DynamicMlpAttention(1, 8, 4, 4),)))
    with pytest.raises(ValueError, match="3 does not divide d_inner, 8"):
        DynamicMlpAttention(2, 8, 8, 3).check()


@pytest.mark.parametrize("reads", [1.0, 3.0])
def test_a_sweep_counts_the_experts_and_flops_that_ran(reads):
    model, protocol = converted(), Protocol(2, 16, 16, same_length=True)
    masks = {layer: [] for layer in model.dynamic_blocks()}
    for layer, found in masks.items():
        layer.register_forward_pre_hook(
            lambda layer, inputs, found=found: found.append(threshold(layer.router(inputs[0].flatten(0, 1)), 0.4))
        )
    rows = list(sweep(model, TEXTS.valid, [0.4], 1e6, protocol, Runtime(), reads))
    counts = [torch.cat(found[len(found) // 2 :]).double().sum(1).mean().item() for found in masks.values()]
    assert rows[0]["experts_per_layer"] == [2, 2, 2, 2, 8] and rows[1]["experts_per_layer"] == pytest.approx(counts)
    blocks, passes = model.architecture.blocks, [1, reads, reads, 1, 1]
    dense = 2 * WIDTH * WIDTH * sum(passes[:4]) + 4 * WIDTH * 32
    assert dense_flops(blocks, WIDTH, reads) == dense
    routers = [2 * 6 * (WIDTH + experts) for experts in (2, 2, 2, 2, 8)]
    layers = zip(counts, routers, passes, strict=True)
    flops = sum((count * 4 * WIDTH * 4 + router) * times for count, router, times in layers)
    assert rows[1]["converted_flops"] == pytest.approx(flops) and flops < rows[0]["converted_flops"]
    assert rows[1]["network_flops"] == pytest.approx(1e6 - dense + flops)


def test_flops_are_what_executing_only_the_chosen_experts_takes():
    model, x = converted(), torch.randn(37, WIDTH, generator=torch.Generator().manual_seed(1))
    set_threshold(model, 0.4)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        experts = [layer(x, ("executed",))[1]["executed"].item() / 37 for layer in model.dynamic_blocks()]
    assert converted_flops(model.architecture.blocks, experts, WIDTH) * 37 == pytest.approx(counter.get_total_flops())


def test_a_saved_network_runs_at_its_threshold(tmp_path):
    model = converted()
    store_threshold(model, 0.4)
    models.save(model, tmp_path)
    again = models.load(tmp_path)
    assert again.architecture == model.architecture and threshold_of(again) == 0.4
    assert [layer.tau for layer in again.dynamic_blocks()] == [0.4] * 5
    assert torch.equal(logits(again), logits(model))


def test_projections_and_feed_forward_layers_are_penalised_as_two_groups():
    """Remembered tokens, whose keys and values are computed again, count once."""
    model, term, hidden = replaced(), SparsityPenalty(SPARSIFY), {}
    for name, layer in zip(NAMES, model.feed_forward_blocks(), strict=True):
        layer.activation.register_forward_hook(lambda module, x, y, name=name: hidden.update({name: y[:, -8:]}))
    task = CausalLM(TEXTS, SPARSIFY, Runtime())
    state = task.loss(model, task.batch(0), None).state
    loss, metrics = term(task.loss(model, task.batch(1), state, term.wants), None, 0)
    measures = {n: ((h.sum(-1) ** 2) / (h.square().sum(-1) + 1e-15)).mean() for n, h in hidden.items()}
    expected = sum(measures[name] for name in NAMES[:4]) / 4 + measures["1"]
    torch.testing.assert_close(metrics["penalty"], expected)
    torch.testing.assert_close(loss, 0.1 * expected)
    assert {name for name in metrics if "sparsity" in name} == {f"sparsity_{name}" for name in NAMES}


def test_all_stages_take_a_network_with_replaced_projections(tmp_path):
    model = replaced()
    record = {stage: Record(Checkpoint(tmp_path / stage, "")) for stage in ("sparsify", "routers")}
    model, history, metrics = sparsify(model, TEXTS, SPARSIFY, Runtime(), record["sparsify"])
    assert metrics["converted_layers"] == 5 and "sparsity_0_key" in history and 0 < metrics["sparsity_0_value"] < 1
    made, _, _ = split(model, CLUSTERS, 0)
    routed, history, metrics = train_routers(made, TEXTS, ROUTERS, Runtime(), record["routers"])
    assert metrics["converted_layers"] == 5 and {f"r2_{name}" for name in NAMES} < metrics.keys()
    assert {f"loss_{name}" for name in NAMES} < {*history} and history["loss"].iloc[-1] < history["loss"].iloc[0]
    torch.testing.assert_close(logits(routed), logits(model), rtol=1e-5, atol=1e-5)
    choice = ThresholdConfig(batch=2, tgt_len=16, mem_len=16, clamp_len=0, taus=(0.1, 0.9), tolerance=0.9)
    assert ThresholdChoice(model, TEXTS.valid, choice, Runtime())(routed)["tau"] == threshold_of(routed) == 0.9


def test_what_layers_hand_on_has_the_names_of_the_layers():
    model, executed = converted(), Executed()
    with torch.no_grad():
        output = model(torch.from_numpy(TEXTS.valid[:16])[None], mem_len=8, wants=("inputs", "executed"))
    executed(output)
    assert list(of_layers(output.aux, "inputs")) == list(of_layers(output.aux, "executed")) == NAMES
    assert all(x.shape == (1, 16, WIDTH) for x in of_layers(output.aux, "inputs").values())
    assert executed.per_token() == [2, 2, 2, 2, 8]


def test_a_network_without_an_attention_of_full_width_passes_through(tmp_path):
    model = LanguageModel(Architecture(11, WIDTH, (Attention(1, 8), FeedForward(32))))
    config = dataclasses.replace(CONFIG, steps=1)
    same, history, metrics = distil_own_projections(model, TEXTS, config, Runtime(), Record(Checkpoint(tmp_path, "")))
    assert same is model and history.empty
    assert metrics["projections"] == 0 and metrics["reason"].startswith("s1f has no attention with all heads")
