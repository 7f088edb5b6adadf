"""Whether a layer with thresholds runs sparse or dense products: by its density, the tokens of a call and the table."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from numerics import normalised_error

import planer.pretrained
from planer.conversion.counter import counting
from planer.conversion.sites import feed_forward_sites
from planer.conversion.threshold_layer import (
    ThresholdFeedForward,
    apply_thresholds,
    output_norms,
    threshold_layers,
)
from planer.evaluation.arms.points import threshold_points
from planer.kernels import choice
from planer.kernels.neuron_threshold import (
    backends,
    function,
    neuron_threshold,
    neuron_threshold_reference,
    saves_time,
)

pytest.importorskip("transformers", reason="the package transformers is not installed")

from tests.unit.converted import thresholded  # noqa: E402
from tests.unit.tiny_pretrained import inputs, logits, tiny  # noqa: E402

FAMILIES = ("gpt2", "llama")
SPARSE, DENSE = ["cpp", "masked_dense"], ["masked_dense", "cpp"]
BREAK_EVEN = {1: {0.25: SPARSE, 0.5: SPARSE}, 64: {0.25: SPARSE, 0.5: DENSE}}
"""The planted table by tokens and density: with 64 tokens the dense path is faster from a density of 0.5 on."""


@pytest.fixture
def ran(monkeypatch):
    """Names of the backends that calls ran, by the planted table; no C++ compiler is needed."""
    found: list[str] = []
    rows = [
        {"dtype": "float32", "mode": "inference", "tokens": n, "expert_size": 1, "share": share, "backends": order}
        for n, orders in BREAK_EVEN.items()
        for share, order in orders.items()
    ]
    masked_dense = backends.masked_dense

    def planted(name):
        def call(*arguments):
            found.append(name)
            return masked_dense(*arguments)

        return call

    for name in ("cpp", "masked_dense"):
        monkeypatch.setattr(backends, name, planted(name))
    monkeypatch.setattr(function, "unsupported", lambda *_: None)
    monkeypatch.setattr(choice, "_rows", lambda path: rows)
    choice.order.cache_clear()
    yield found
    choice.order.cache_clear()


def names(model) -> list[str]:
    return [site.name for site in feed_forward_sites(model)]


def densities_of(model) -> list[float]:
    return [site.layer.replacement.density for site in feed_forward_sites(model)]


@pytest.mark.parametrize("family", FAMILIES)
def test_each_layer_decides_by_its_density_and_the_tokens(family, ran):
    model, x = tiny(family), inputs(family)
    first, second = names(model)
    for densities, expected in (
        ({first: 0.2, second: 0.9}, ["cpp", "masked_dense"]),
        ({first: 0.9, second: 0.2}, ["masked_dense", "cpp"]),
        (None, ["masked_dense", "masked_dense"]),
    ):
        apply_thresholds(model, dict.fromkeys((first, second), 0.5), "product", densities)
        ran.clear()
        logits(model, x)
        assert ran == expected
        ran.clear()
        logits(model, x[:1, :1])
        assert ran == ["cpp", "cpp"], "one token has no break-even in the table"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("score", ["gate", "product"])
@torch.inference_mode()
def test_over_the_break_even_a_layer_has_the_bits_of_the_thresholded_dense_layer(family, score, ran):
    site, generator = feed_forward_sites(tiny(family))[0], torch.Generator().manual_seed(0)
    layer = ThresholdFeedForward(site, 0.5, score, density=0.9).eval()
    x = torch.randn(64, site.d_model, generator=generator)
    y, weights = layer(x), site.weights()
    assert ran == ["masked_dense"]
    arguments = *weights.first(), weights.w2, weights.b2, layer.limits, score, "masked_dense", layer._activation
    expected, executed = neuron_threshold(x, *arguments)
    assert torch.equal(y, expected) and 0 < executed.sum() < 64 * site.d_inner
    h = site.hidden(x)
    value = h / F.linear(x, weights.w1, weights.b1) if score == "gate" and site.gated else h
    torch.testing.assert_close(y, weights.output(h * (value.abs() > layer.limits)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_layers_in_bfloat16_compute_the_definition(family):
    """No compiled backend takes the type; PyTorch's computes all products.  No score is so near theta that rounding
    decides."""
    site = feed_forward_sites(tiny(family).to(torch.bfloat16))[0]
    x = torch.randn(5, site.d_model, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    middle = (site.hidden(x).float().abs() * output_norms(site)).flatten().sort().values[30:90]
    widest = int(middle.diff().argmax())
    layer = ThresholdFeedForward(site, float(middle[widest : widest + 2].mean()), "product", density=0.2).eval()
    y, weights = layer(x), site.weights()
    given = (None if v is None else v.float() for v in (x, *weights.first(), weights.w2, weights.b2))
    expected, _ = neuron_threshold_reference(*given, layer.limits, "product", layer._activation)
    assert y.dtype == torch.bfloat16 and normalised_error(y.float(), expected) < 0.02


@pytest.mark.parametrize("family", FAMILIES)
def test_a_loaded_folder_decides_the_same(family, ran, tmp_path):
    model, x, found = thresholded(family), inputs(family), []
    planer.pretrained.select(model, "product", 0.25)
    model.save_pretrained(tmp_path)
    for network in (model, type(model).from_pretrained(tmp_path)):
        ran.clear()
        result = logits(network, x)
        assert densities_of(network) == [0.25, 0.5] and ran == ["cpp", "masked_dense"]
        found.append(result)
    assert torch.equal(*found)


def test_a_folder_without_densities_runs_as_if_all_neurons_ran(ran, tmp_path):
    thresholded("gpt2").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] |= {"selector": "product", "value": 0.25}
    del config["quantization_config"]["densities"]
    path.write_text(json.dumps(config))
    logits(type(tiny("gpt2")).from_pretrained(tmp_path), inputs("gpt2"))
    assert ran == ["masked_dense"] * 2


def test_points_of_an_evaluation_have_the_densities():
    model = tiny("gpt2")
    thetas = {0.5: dict.fromkeys(names(model), 0.3)}
    densities = {0.5: dict(zip(names(model), (0.4, 0.6), strict=True))}
    for point in threshold_points(model, SimpleNamespace(score="product", thetas=thetas, densities=densities)):
        point.apply(model)
        assert densities_of(model) == ([1.0, 1.0] if point.selector == "all" else [0.4, 0.6])


def test_fast_layers_run_densely_where_leaving_out_neurons_saves_no_time(monkeypatch):
    model, x = thresholded("gpt2"), inputs("gpt2")
    dense = logits(model, x)
    monkeypatch.setattr(function, "_best", lambda device, dtype, tokens, density: "cpp" if density < 0.4 else "fused")
    planer.pretrained.select(model, "product", 0.25)
    assert [layer.dense for layer in threshold_layers(model)] == [False, True], "their densities are 0.25 and 0.5"
    planer.pretrained.select(model, "product", 0.5)
    assert torch.equal(logits(model, x), dense)
    with counting(model) as counter:
        logits(model, x)
    assert set(counter.shares().values()) == {1.0}
    planer.pretrained.select(model, "product", 0.5, fast=False)
    monkeypatch.undo()
    assert not torch.equal(logits(model, x), dense)


@pytest.mark.parametrize("measured", [True, False])
def test_a_table_that_was_not_measured_promises_no_time(measured, ran, monkeypatch, tmp_path):
    """Layers run densely then, unless all are asked to leave out neurons: those follow the table."""
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"measured": measured, "rows": []}))
    monkeypatch.setattr(choice, "table_path", lambda operation, name: path)
    assert saves_time(torch.device("cpu"), torch.float32, 0.25) == measured
    model = thresholded("gpt2")
    for fast, expected in ((True, ["cpp", "cpp"] if measured else []), (False, ["cpp", "cpp"])):
        planer.pretrained.select(model, "product", 0.25, fast=fast)
        ran.clear()
        logits(model, inputs("gpt2")[:1, :1])
        assert ran == expected


def test_the_table_of_the_h200_was_not_measured(monkeypatch):
    monkeypatch.setattr(choice, "device_class", lambda device: "NVIDIA H200")
    assert not choice.is_measured("neuron_threshold", torch.device("cpu"))


def test_no_backend_leaves_out_products_in_bfloat16_on_a_cpu():
    assert not any(saves_time(torch.device("cpu"), torch.bfloat16, density) for density in (0.01, 0.5, 1.0))
