"""FLOPs of pretrained networks: closed forms against torch's counter."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from planer.conversion.sites import feed_forward_sites
from planer.evaluation.arms.flops import experts_flops, layer_flops, network_flops, thresholded_flops

transformers = pytest.importorskip("transformers", reason="the package transformers is not installed")

from tests.unit.tiny_pretrained import FAMILIES, NEURONS, WIDTH, inputs, tiny  # noqa: E402

HEADS = {
    "bert": ("BertForMaskedLM", "BertForSequenceClassification", "BertForQuestionAnswering"),
    "gpt2": ("GPT2LMHeadModel", "GPT2ForSequenceClassification", "GPT2ForQuestionAnswering"),
    "llama": ("LlamaForCausalLM", "LlamaForSequenceClassification", "LlamaForQuestionAnswering"),
    "qwen3": ("Qwen3ForCausalLM",),
    "mistral": ("MistralForCausalLM",),
    "qwen2": ("Qwen2ForCausalLM",),
    "vit": ("ViTForImageClassification",),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_closed_forms_agree_with_the_counter_for_every_head(family):
    config = tiny(family).config
    config._attn_implementation = "eager"  # the counter does not see fused attention on a CPU
    config.pad_token_id = 0
    x = inputs(family)
    for name in HEADS[family]:
        model = getattr(transformers, name)(config).eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(x)
        tokens = 5 if family == "vit" else x.shape[1]
        parts = network_flops(model).per_token([tokens] * len(x))
        counted = counter.get_total_flops()
        assert parts["total"] == pytest.approx(sum(value for part, value in parts.items() if part != "total"))
        assert counted == pytest.approx(parts["total"] * len(x) * tokens), name


@pytest.mark.parametrize(
    ("name", "config", "tokens", "giga", "shares"),
    [
        ("BertModel", "BertConfig", 128, 11.17, (0.649, 0.324, 0.027)),
        ("GPT2LMHeadModel", "GPT2Config", 1024, 145.8, (0.398, 0.199, 0.133)),
        ("ViTForImageClassification", "ViTConfig", 197, 17.56, (0.635, 0.318, 0.041)),
    ],
)
def test_published_flops_of_networks(name, config, tokens, giga, shares):
    """Multiply-adds of a sequence in 10^9, and shares of feed-forward layers, projections and attention."""
    with torch.device("meta"):
        model = getattr(transformers, name)(getattr(transformers, config)())
    parts = network_flops(model).per_token([tokens])
    assert parts["total"] * tokens / 2e9 == pytest.approx(giga, rel=2e-3)
    found = [parts[part] / parts["total"] for part in ("feed_forward", "projections", "attention")]
    assert found == pytest.approx(shares, abs=2e-3)


@pytest.mark.parametrize("family", ["bert", "llama", "vit"])
def test_flops_per_real_token_are_those_of_each_sequence_alone(family):
    """Padding is not counted."""
    flops, lengths = network_flops(tiny(family)), [3, 9, 17]
    alone = [flops.per_token([length])["total"] * length for length in lengths]
    assert flops.per_token(lengths)["total"] == pytest.approx(sum(alone) / sum(lengths))


@pytest.mark.parametrize(("family", "matrices"), [("gpt2", 2), ("qwen2", 3)])
def test_all_experts_cost_the_dense_layer_and_their_router(family, matrices):
    site, size, width = feed_forward_sites(tiny(family))[0], 4, 8
    experts = NEURONS // size
    router = nn.Sequential(nn.Linear(WIDTH, width, bias=False), nn.ReLU(), nn.Linear(width, experts, bias=False))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        router(torch.zeros(1, WIDTH))
    assert layer_flops(site) == 2 * matrices * WIDTH * NEURONS
    full = experts_flops(site, size, width, "dynamic_k", experts)
    assert full == layer_flops(site) + counter.get_total_flops() + 2 * experts
    assert full - experts_flops(site, size, width, "dynamic_k", experts - 1) == 2 * matrices * WIDTH * size


@pytest.mark.parametrize(
    ("family", "score", "dense_products"), [("gpt2", "product", 1), ("llama", "product", 2), ("llama", "gate", 1)]
)
def test_a_threshold_saves_the_products_after_its_score(family, score, dense_products):
    site = feed_forward_sites(tiny(family))[0]
    one, none = (thresholded_flops(site, score, kept) for kept in (1, 0))
    matrices = 2 if family == "gpt2" else 3
    assert none == 2 * dense_products * WIDTH * NEURONS + NEURONS  # and a comparison per neuron
    assert one - none == 2 * (matrices - dense_products) * WIDTH
    assert thresholded_flops(site, score, NEURONS) == layer_flops(site)
