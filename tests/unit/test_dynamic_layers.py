"""Layers of pretrained networks split into experts."""

from __future__ import annotations

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from planer.conversion.clusters import apply_labels
from planer.conversion.counter import Counter, counting
from planer.conversion.dynamic import DynamicFeedForward, dynamic_layers, make_dynamic, set_selector
from planer.conversion.selectors import ALL, Selector
from planer.conversion.sites import feed_forward_sites
from planer.errors import UserError
from planer.kernels.cpp import build

pytest.importorskip("transformers", reason="the package transformers is not installed")

from tests.unit import converted  # noqa: E402
from tests.unit.tiny_pretrained import LAYERS, NEURONS, WIDTH, inputs, logits, tiny  # noqa: E402

FAMILIES = ("bert", "gpt2", "vit", "llama")
SIZE = converted.EXPERT_SIZE
EXPERTS = NEURONS // SIZE


def split(family: str, relu: bool = False) -> nn.Module:
    """A network with split layers and random routers."""
    model = tiny(family)
    if relu:
        feed_forward_sites(model)[0].adapter.use_relu(model)
    return converted.split(model)


def labels_of(model: nn.Module) -> pd.DataFrame:
    random = np.random.default_rng(0)
    rows = [
        {"layer": site.name, "neuron": np.arange(NEURONS), "expert": random.permutation(NEURONS) % EXPERTS}
        for site in feed_forward_sites(model)
    ]
    return pd.concat([pd.DataFrame(row) for row in rows], ignore_index=True)


def definition(layer: DynamicFeedForward, x: torch.Tensor) -> torch.Tensor:
    """The sum of the outputs of the selected experts, in double precision."""
    site = layer._site
    weights = type(site.weights())(**{k: v if v is None else v.double() for k, v in vars(site.weights()).items()})
    y = torch.zeros(len(x), WIDTH, dtype=torch.float64)
    for c in range(EXPERTS):
        expert = weights.neurons(torch.arange(c * SIZE, (c + 1) * SIZE))
        part = expert.output(expert.hidden(x.double(), site.activation)) - (0 if expert.b2 is None else expert.b2)
        y += part * layer.mask(x)[:, c, None]
    return y if weights.b2 is None else y + weights.b2


@pytest.mark.parametrize("family", FAMILIES)
def test_all_experts_give_the_bits_of_the_dense_network(family):
    assert torch.equal(logits(split(family), inputs(family)), logits(tiny(family), inputs(family)))


@pytest.mark.parametrize("family", FAMILIES)
def test_sorted_neurons_give_equal_logits(family):
    model = tiny(family)
    labels = labels_of(model)
    before = feed_forward_sites(model)[1].weights().neurons(torch.arange(NEURONS))
    apply_labels(model, labels)
    torch.testing.assert_close(
        logits(model, inputs(family)), logits(tiny(family), inputs(family)), rtol=1e-5, atol=1e-5
    )
    site = feed_forward_sites(model)[1]
    for c in range(EXPERTS):
        own = labels.query("layer == @site.name and expert == @c")["neuron"].tolist()
        assert torch.equal(site.weights().w2[c * SIZE : (c + 1) * SIZE], before.w2[own])


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_is_the_sum_of_its_selected_experts(family, relu):
    layer = dynamic_layers(split(family, relu))[0]
    x = torch.randn(7, WIDTH, generator=torch.Generator().manual_seed(2))
    for selector in (Selector("dynamic_k", 0.3), Selector("absolute", 0.5), Selector("top_k", 2)):
        layer.select(selector)
        assert 0 < layer.mask(x).sum() < 7 * EXPERTS
        torch.testing.assert_close(layer(x).double(), definition(layer, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision(family):
    model = split(family).to(torch.bfloat16)
    layer = dynamic_layers(model)[0]
    layer.select(Selector("dynamic_k", 0.0))
    x = torch.randn(7, WIDTH, generator=torch.Generator().manual_seed(2)).to(torch.bfloat16)
    expected = layer._site.dense(x)
    torch.testing.assert_close(layer(x), expected, rtol=1e-2, atol=1e-2 * expected.abs().max().item())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_threshold_that_all_experts_reach_equals_the_dense_network(family):
    model = split(family)
    set_selector(model, Selector("dynamic_k", 0.0))
    torch.testing.assert_close(
        logits(model, inputs(family)), logits(tiny(family), inputs(family)), rtol=1e-4, atol=1e-4
    )
    set_selector(model, Selector("dynamic_k", 0.5))
    assert (logits(model, inputs(family)) - logits(tiny(family), inputs(family))).abs().max() > 1e-2


def test_weights_keep_their_names():
    model, before = split("llama"), tiny("llama").state_dict()
    state = model.state_dict()
    added = {name.partition("replacement.")[2] for name in state if name not in before}
    assert added == {"router.v1", "router.v2", "quantiles"}
    assert all(torch.equal(state[name], value) for name, value in before.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_copy_has_its_own_weights(family):
    model = split(family)
    set_selector(model, Selector("dynamic_k", 0.3))
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for site in feed_forward_sites(model):
            site.weights().w2.zero_()
    set_selector(twin, Selector("dynamic_k", 0.3))
    again = split(family)
    set_selector(again, Selector("dynamic_k", 0.3))
    torch.testing.assert_close(logits(twin, inputs(family)), logits(again, inputs(family)))
    assert all(site.weights().by_neuron for site in feed_forward_sites(twin))


def test_gated_weights_are_stored_in_one_tensor():
    layer = dynamic_layers(split("llama"))[0]
    layer.select(Selector("dynamic_k", 0.4))
    weights = layer._site.weights()
    assert weights.first()[0].data_ptr() == weights.gate.data_ptr()
    assert torch.equal(weights.first()[0], torch.cat((weights.gate, weights.w1)))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_decoding_equals_a_pass_over_the_text(family):
    model, ids = split(family), inputs(family)
    set_selector(model, Selector("dynamic_k", 0.4))
    whole, cache, steps = logits(model, ids), None, []
    with torch.no_grad():
        for t in range(ids.shape[1]):
            output = model(ids[:, t : t + 1], past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            steps.append(output.logits)
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=1e-4, atol=1e-4)


def test_the_counter_counts_real_tokens_only():
    model, ids = split("bert"), inputs("bert")
    real = torch.ones_like(ids, dtype=torch.bool)
    real[1, 4:] = False
    layer = dynamic_layers(model)[1]
    seen = []
    handle = layer.register_forward_pre_hook(lambda module, x: seen.append(module.mask(x[0].flatten(0, -2)).sum(-1)))
    set_selector(model, Selector("dynamic_k", 0.4))
    with counting(model) as counter:
        counter.real = real
        model(ids, attention_mask=real.long())
    handle.remove()
    counts = seen[0][real.flatten()]
    assert len(counts) == 13
    assert counter.per_token()[layer.name] == pytest.approx(counts.double().mean().item())
    assert counter.shares()[layer.name] == pytest.approx(counts.double().mean().item() / EXPERTS)
    assert counter.histogram(layer.name).tolist() == np.bincount(counts, minlength=EXPERTS + 1).tolist()
    assert counter.names == [layer.name for layer in dynamic_layers(model)] and len(counter.names) == LAYERS
    assert all(layer.counter is None for layer in dynamic_layers(model))


def test_the_counter_counts_all_experts_of_a_dense_pass():
    model = split("gpt2")
    with counting(model) as counter:
        logits(model, inputs("gpt2"))
    assert set(counter.per_token().values()) == {float(EXPERTS)}


def test_a_mask_of_another_batch_is_refused():
    counter = Counter()
    counter.real = torch.ones(2, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match="h.0: counter.real is a mask of 8 tokens; the pass has 6"):
        counter.add("h.0", torch.ones(2, 3, dtype=torch.int64), 3)


def test_the_oracle_selects_by_the_norms_of_the_outputs():
    layer = dynamic_layers(split("llama"))[0]
    x = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(2))
    weights, expected = layer._site.weights(), []
    for c in range(EXPERTS):
        expert = weights.neurons(torch.arange(c * SIZE, (c + 1) * SIZE))
        expected.append((expert.hidden(x, "silu") @ expert.w2).norm(dim=-1))
    norms = torch.stack(expected, -1)
    torch.testing.assert_close(layer.norms(x), norms, rtol=1e-4, atol=1e-4)
    layer.select(Selector("top_k", 2, "oracle"))
    assert torch.equal(layer.mask(x).nonzero()[:, 1].view(5, 2), norms.topk(2).indices.sort().values)


def test_random_selection_has_the_wanted_share_and_repeats():
    layer = dynamic_layers(split("vit"))[0]
    x = torch.zeros(2000, WIDTH)
    layer.select(Selector("absolute", 0.25, "random"))
    first = layer.mask(x)
    assert first.float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert not torch.equal(layer.mask(x), first)
    layer.select(Selector("absolute", 0.25, "random"))
    assert torch.equal(layer.mask(x), first)


def test_selection_in_training_is_refused():
    model = split("bert").train()
    set_selector(model, Selector("top_k", 1))
    with pytest.raises(ValueError, match="call eval"):
        model(inputs("bert"))
    set_selector(model, ALL)
    model(inputs("bert"))


@pytest.mark.parametrize(
    ("target", "selector", "message"),
    [
        ("norm", Selector("top_k", 7), "top_k of 7 exceeds the 6 experts of model.layers.0.mlp"),
        ("norm", Selector("absolute", 0.5), "calibrate the network first"),
        ("moefication", Selector("dynamic_k", 0.5), "dynamic_k needs routers that predict norms"),
    ],
)
def test_selectors_that_do_not_fit_are_refused(target, selector, message):
    model = tiny("llama")
    make_dynamic(model, SIZE, 8, target)
    with pytest.raises(UserError, match=message):
        set_selector(model, selector)


def test_a_selector_that_one_layer_refuses_changes_none():
    model, selector = split("gpt2"), Selector("top_k", 2)
    set_selector(model, selector)
    dynamic_layers(model)[-1].quantiles.fill_(torch.nan)
    with pytest.raises(UserError, match="calibrate the network first"):
        set_selector(model, Selector("absolute", 0.5))
    assert {layer.selector for layer in dynamic_layers(model)} == {selector}


def test_an_expert_size_that_does_not_divide_is_refused():
    with pytest.raises(
        UserError, match="expert_size is 5; it must divide the neurons of transformer.h.0.mlp, which are 24"
    ):
        make_dynamic(tiny("gpt2"), 5, 8)


def test_labels_that_do_not_fit_are_refused():
    model = tiny("bert")
    labels = labels_of(model)
    with pytest.raises(UserError, match="do not name each of the 24 neurons of bert.encoder.layer.1 once"):
        apply_labels(model, labels[:-1])
    other = pd.concat([labels, labels[:NEURONS].assign(layer="bert.encoder.layer.7")])
    with pytest.raises(UserError, match="name bert.encoder.layer.7, which the network lacks"):
        apply_labels(model, other)


@pytest.mark.skipif(not build.available(), reason="there is no C++ compiler")
def test_fast_layers_run_densely_where_selecting_saves_no_time():
    model, dense = split("gpt2"), logits(tiny("gpt2"), inputs("gpt2"))
    for share, is_dense in ((0.4, False), (0.6, True)):
        selector = Selector("absolute", share)
        set_selector(model, selector, fast=True)
        assert torch.equal(logits(model, inputs("gpt2")), dense) == is_dense
        assert {layer.selector for layer in dynamic_layers(model)} == {selector}
        set_selector(model, selector)
        assert not torch.equal(logits(model, inputs("gpt2")), dense)


def test_fast_layers_run_densely_in_half_precision():
    """No backend is faster than dense there."""
    model = split("gpt2").to(torch.bfloat16)
    before = logits(model, inputs("gpt2"))
    set_selector(model, Selector("top_k", 1), fast=True)
    assert torch.equal(logits(model, inputs("gpt2")), before)
    with counting(model) as counter:
        logits(model, inputs("gpt2"))
    assert set(counter.shares().values()) == {1.0}
