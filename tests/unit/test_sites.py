"""Feed-forward sites of every family."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from planer.conversion.experts import cluster_neurons
from planer.conversion.sites import Weights, feed_forward_sites
from planer.errors import UserError
from planer.models import LanguageModel
from planer.specs import Architecture, Attention, FeedForward

transformers = pytest.importorskip("transformers", reason="the package transformers is not installed")

from tests.unit.tiny_pretrained import FAMILIES, LAYERS, NEURONS, WIDTH, inputs, logits, tiny  # noqa: E402

ACTIVATIONS = {
    "relu": torch.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "silu": F.silu,
}
ALL = [*FAMILIES, "own"]


def own() -> LanguageModel:
    torch.manual_seed(0)
    blocks = (Attention(2, 8), FeedForward(NEURONS), FeedForward(NEURONS))
    model = LanguageModel(Architecture(d_model=WIDTH, vocab_size=96, dropout=0.1, blocks=blocks))
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, 0.3)
    return model.eval()


def network(family: str) -> nn.Module:
    return own() if family == "own" else tiny(family)


@torch.no_grad()
def outputs(model: nn.Module, family: str) -> torch.Tensor:
    if family == "own":
        return model.logits(model(inputs("own"), None, mem_len=0).hidden)
    return logits(model, inputs(family))


class Dense(nn.Module):
    """The layer as a loop over neurons in double precision, from the site's weights."""

    def __init__(self, weights: Weights, activation: str):
        super().__init__()
        self.weights = Weights(**{k: v if v is None else v.detach().double().clone() for k, v in vars(weights).items()})
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        w, tokens = self.weights, x.double()
        y = torch.zeros_like(tokens) if w.b2 is None else w.b2.expand_as(tokens).clone()
        for j in range(len(w.w1)):
            z = tokens @ w.w1[j] + (0 if w.b1 is None else w.b1[j])
            if w.gate is None:
                h = self.activation(z)
            else:
                h = self.activation(tokens @ w.gate[j] + (0 if w.gate_bias is None else w.gate_bias[j])) * z
            y += h[..., None] * w.w2[j]
        return y.to(x.dtype)


@pytest.mark.parametrize("family", ALL)
def test_layers_computed_from_a_site_give_equal_outputs(family):
    model = network(family)
    before, sites = outputs(model, family), feed_forward_sites(model)
    assert [(site.d_model, site.d_inner) for site in sites] == [(WIDTH, NEURONS)] * LAYERS
    for site in sites:
        assert model.get_submodule(site.name) is site.layer
        site.replace(Dense(site.weights(), site.activation))
    torch.testing.assert_close(outputs(model, family), before, rtol=1e-4, atol=1e-5)
    for site in sites:
        site.replace(nn.Identity())
    assert (outputs(model, family) - before).abs().max() > 1e-2, "the replacements run"


def test_a_copy_of_a_network_keeps_its_replacements():
    model = tiny("gpt2")
    before = logits(model, inputs("gpt2"))
    for site in feed_forward_sites(model):
        site.replace(Dense(site.weights(), site.activation))
    twin = copy.deepcopy(model)
    for site in feed_forward_sites(model):
        site.replace(nn.Identity())
    torch.testing.assert_close(logits(twin, inputs("gpt2")), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ALL)
def test_sorted_neurons_give_equal_outputs(family):
    model = network(family)
    before = outputs(model, family)
    for site in feed_forward_sites(model):
        weights = site.weights()
        labels = cluster_neurons(weights.w1 if weights.gate is None else weights.gate, 6, 0, 1, 5)
        order = torch.from_numpy(np.argsort(labels, kind="stable"))
        assert not torch.equal(order, torch.arange(NEURONS))
        site.reorder(order)
    torch.testing.assert_close(outputs(model, family), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ALL)
def test_the_experts_of_a_layer_add_up_to_it(family):
    site = feed_forward_sites(network(family))[0]
    x, weights = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(2)), site.weights()
    labels = cluster_neurons(weights.w1, 6, 0, 1, 5)
    experts = [weights.neurons(torch.from_numpy(np.flatnonzero(labels == c))) for c in range(4)]
    parts = [expert.output(expert.hidden(x, site.activation)) for expert in experts]
    surplus = 0 if weights.b2 is None else 3 * weights.b2
    torch.testing.assert_close(sum(parts) - surplus, weights.output(site.hidden(x)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ALL)
def test_writing_to_the_views_changes_the_network(family):
    model, changed = network(family), network(family)
    for site in feed_forward_sites(changed):
        with torch.no_grad():
            site.weights().w2[3] = 0
            site.weights().w1[5] *= 2
    for site in feed_forward_sites(model):
        weights = site.weights().neurons(torch.arange(NEURONS))
        with torch.no_grad():
            weights.w2[3] = 0
            weights.w1[5] *= 2
        site.replace(Dense(weights, site.activation))
    torch.testing.assert_close(outputs(model, family), outputs(changed, family), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ALL)
def test_storing_by_neuron_changes_no_value(family):
    model = network(family)
    before, saved = outputs(model, family), {k: v.clone() for k, v in model.state_dict().items()}
    for site in feed_forward_sites(model):
        site.store_by_neuron()
        weights = site.weights()
        assert weights.w1.is_contiguous() and weights.w2.is_contiguous()
        assert weights.gate is None or weights.gate.is_contiguous()
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())
    torch.testing.assert_close(outputs(model, family), before, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", ALL)
def test_watching_gives_the_activations_of_each_layer(family):
    model = network(family)
    for site in feed_forward_sites(model):
        seen, entered = [], []
        handle = site.entry.register_forward_pre_hook(lambda module, x, entered=entered: entered.append(x[0].clone()))
        with site.watch(lambda site, z, h, seen=seen: seen.append((z.clone(), h.clone()))):
            outputs(model, family)
        handle.remove()
        outputs(model, family)
        ((z, h),), (x,) = seen, entered
        torch.testing.assert_close(h, site.hidden(x).detach())
        first = site.weights().neurons(torch.arange(NEURONS))
        before = F.linear(x, first.w1, first.b1) if first.gate is None else F.linear(x, first.gate, first.gate_bias)
        torch.testing.assert_close(z, (before.relu() if family == "own" else before).detach())


@pytest.mark.parametrize("family", FAMILIES)
def test_relu_as_the_activation_is_saved_and_loaded(family, tmp_path):
    model = tiny(family)
    before = logits(model, inputs(family))
    feed_forward_sites(model)[0].adapter.use_relu(model)
    assert (logits(model, inputs(family)) - before).abs().max() > 1e-2
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits(again, inputs(family)), logits(model, inputs(family)))
    assert {site.activation for site in feed_forward_sites(again)} == {"relu"}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_adapter_names_the_projections_of_every_attention(family):
    model = tiny(family)
    adapter = feed_forward_sites(model)[0].adapter
    attentions = adapter.find(model, adapter.attention)
    assert len(attentions) == LAYERS and model.config.model_type in adapter.model_types
    for _, attention in attentions:
        *inward, outward = [attention.get_submodule(path) for path in adapter.projections]
        sizes = [tuple(module.weight.shape)[:: 1 if adapter.input_major else -1] for module in inward]
        assert {size[0] for size in sizes} == {WIDTH} and sum(size[1] for size in sizes) in (2 * WIDTH, 3 * WIDTH)
        assert WIDTH in outward.weight.shape


def test_an_unknown_activation_is_refused_by_name():
    model = tiny("bert")
    model.config.hidden_act = "quick_gelu"
    with pytest.raises(UserError, match="BertForMaskedLM: hidden_act is 'quick_gelu'; allowed: relu, gelu, "):
        feed_forward_sites(model)


def test_an_unknown_family_is_refused_by_its_class():
    config = transformers.OPTConfig(
        vocab_size=96, hidden_size=16, num_hidden_layers=1, ffn_dim=24, num_attention_heads=2, word_embed_proj_dim=16
    )
    with pytest.raises(UserError, match="OPTForCausalLM has no feed-forward layer .* adapters: bert, gpt2, llama, vit"):
        feed_forward_sites(transformers.OPTForCausalLM(config))


def test_a_bias_that_the_layer_lacks_is_refused():
    site = feed_forward_sites(tiny("qwen2"))[0]
    biased = feed_forward_sites(tiny("llama"))[0].weights()
    with pytest.raises(ValueError, match=r"model.layers.0.mlp: b1 is given, the layer differs"):
        site.set_weights(biased)
