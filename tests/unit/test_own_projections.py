"""MLPs in place of the attention projections of our networks."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from planer import models
from planer.config import OptimizerConfig, ProjectionConfig
from planer.config.conversion import hidden_width
from planer.config.pretrained import SiteClusterConfig
from planer.conversion.clusters import apply_labels, cluster_sites
from planer.conversion.counter import counting
from planer.conversion.dynamic import dynamic_layers, make_dynamic, set_selector
from planer.conversion.own_projections import distil_own_projections
from planer.conversion.selectors import Selector
from planer.conversion.sites import feed_forward_sites
from planer.data.texts import Texts
from planer.models import LanguageModel, initialise
from planer.runtime import Runtime
from planer.specs import Architecture, Attention, FeedForward, MlpAttention, kinds
from planer.training.checkpoint import Checkpoint
from planer.training.loop import Record

ADAMW = OptimizerConfig("adamw", 0.01, 0.001, 0, (0.9, 0.95), 1e-8, 0.0, 1.0)
CONFIG = ProjectionConfig(4, 40, ADAMW, 10, 25, 8, 8, replace=True, width_factor=1.0, weight=1e-3, ramp="linear")
WIDTH, HEADS = 16, 2
GENERATOR = np.random.default_rng(0)
TEXTS = Texts(11, *(GENERATOR.integers(0, 11, size).astype(np.int64) for size in (600, 300)))


def network(norm: str = "post") -> LanguageModel:
    blocks = (Attention(2, 8), FeedForward(32), Attention(2, 8), Attention(1, 8))
    model = LanguageModel(Architecture(11, WIDTH, blocks, norm=norm, init_std=0.3))
    initialise(model, torch.Generator().manual_seed(0))
    return model.eval()


def mlps(norm: str = "post") -> LanguageModel:
    """MLPs of random weights and biases, also of an attention that is not as wide as the network."""
    blocks = tuple(MlpAttention(heads, 8, hidden_width(WIDTH, 8 * heads, 1.0)) for heads in (2, 1))
    model = LanguageModel(Architecture(11, WIDTH, (blocks[0], FeedForward(32), blocks[1]), norm=norm, init_std=0.3))
    initialise(model.eval(), torch.Generator().manual_seed(0))
    for module in model.modules():
        if hasattr(module, "draw"):
            module.draw(torch.Generator().manual_seed(1))
    return model


@torch.no_grad()
def logits(model: LanguageModel, attention: str = "recompute") -> torch.Tensor:
    """Logits of three consecutive segments."""
    tokens, state, found = torch.from_numpy(TEXTS.valid[:48]).view(2, 24), None, []
    for segment in tokens.split(8, dim=1):
        output = model(segment, state, mem_len=8, attention=attention)
        state = output.state
        found.append(model.logits(output.hidden))
    return torch.cat(found, dim=1)


def test_parameters_and_flops_of_the_specification():
    model = mlps()
    first, _, pruned = model.architecture.blocks
    assert (first.neurons, pruned.neurons) == (WIDTH // 2, 5)
    assert model.architecture.params() == sum(weight.numel() for weight in model.parameters())
    dense = Attention(2, 8)
    for reading in ((WIDTH, 2, 8, 8, "cached"), (WIDTH, 2, 8, 4, "recompute")):
        assert first.flops(*reading) == dense.flops(*reading), "d / 2 neurons have the same FLOPs"
        assert dataclasses.replace(first, neurons=4).flops(*reading) < dense.flops(*reading)


def test_only_dense_projections_are_replaced():
    assert [kind for kind, spec in kinds().items() if spec.projects] == ["attention"]


def test_flops_agree_with_the_counter():
    model, spec = mlps(), mlps().architecture.blocks[0]
    layer = model.blocks[0].sublayer
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        for projection in (layer.query, layer.key, layer.value, layer.output):
            projection(torch.zeros(1, WIDTH))
    scores = 3 * 2 * 16 * spec.width
    assert counter.get_total_flops() + scores == spec.flops(WIDTH, 2, 8, 8, "cached")


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_cached_attention_equals_recomputed(norm):
    model = mlps(norm)
    torch.testing.assert_close(logits(model, "cached"), logits(model), rtol=1e-5, atol=1e-5)


def test_a_saved_network_is_the_same(tmp_path):
    model = mlps()
    models.save(model, tmp_path)
    again = models.load(tmp_path)
    assert again.architecture == model.architecture and isinstance(again.architecture.blocks[0], MlpAttention)
    assert torch.equal(logits(again), logits(model))


def test_distillation_trains_only_the_projections(tmp_path):
    errors, model = [], network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for steps in (1, 40):
        config = dataclasses.replace(CONFIG, steps=steps)
        record = Record(Checkpoint(tmp_path / f"{steps}", ""))
        made, _, metrics = distil_own_projections(model, TEXTS, config, Runtime(), record)
        errors.append(metrics["error"])
        state = made.state_dict()
        assert all(torch.equal(value, before[name]) for name, value in state.items() if name in before)
        assert not made.training and metrics["projections"] == 8 and "error_2_output" in metrics
        assert made.architecture.blocks[1::2] == model.architecture.blocks[1::2], "one has fewer heads"
    assert errors[1] < 0.7 * errors[0]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_distillation_in_bfloat16_has_the_errors_of_single_precision(tmp_path):
    errors, config = [], dataclasses.replace(CONFIG, steps=2)
    for dtype in (torch.float32, torch.bfloat16):
        record = Record(Checkpoint(tmp_path / str(dtype), ""))
        errors.append(distil_own_projections(network(), TEXTS, config, Runtime(dtype=dtype), record)[2]["error"])
    assert errors[1] == pytest.approx(errors[0], rel=0.05)


def test_projections_are_split_into_experts():
    model = mlps()
    sites = feed_forward_sites(model)
    names = [f"blocks.0.sublayer.{name}" for name in ("query", "key", "value", "output")]
    assert [site.name for site in sites[1:5]] == names
    assert [site.is_projection for site in sites] == [False] + [True] * 8
    square = LanguageModel(dataclasses.replace(model.architecture, blocks=model.architecture.blocks[:2]))
    initialise(square, torch.Generator().manual_seed(2))
    dense = logits(square.eval())
    labels, metrics = cluster_sites(square, None, SiteClusterConfig(4, 1, 10, "weights", 0), 0)
    assert metrics["converted_layers"] == 5
    apply_labels(square, labels)
    torch.testing.assert_close(logits(square), dense, rtol=1e-5, atol=1e-5)
    make_dynamic(square, 4, 8)
    with torch.no_grad():
        for layer in dynamic_layers(square):
            for weight in layer.router.parameters():
                weight.normal_(generator=torch.Generator().manual_seed(3))
    set_selector(square, Selector("dynamic_k", 0.0))
    torch.testing.assert_close(logits(square), dense, rtol=1e-5, atol=1e-5)
    set_selector(square, Selector("top_k", 1))
    with counting(square) as counter:
        sparse = logits(square)
    assert set(counter.per_token().values()) == {1.0} and not torch.allclose(sparse, dense)
