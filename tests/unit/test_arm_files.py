"""Labels, routers and thresholds of an arm on disk."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import torch

from planer.conversion.arm_files import read_labels, read_routers, read_thresholds, split_by, write_routers
from planer.conversion.dynamic import dynamic_layers, set_selector
from planer.conversion.neuron_threshold import Thresholds
from planer.conversion.selectors import Selector
from planer.conversion.sites import feed_forward_sites
from planer.errors import UserError
from planer.files import write_json, write_parquet

transformers = pytest.importorskip("transformers", reason="the package transformers is not installed")

from tests.unit.tiny_pretrained import NEURONS, inputs, logits, tiny  # noqa: E402


def labels_of(model) -> pd.DataFrame:
    experts = torch.randperm(NEURONS, generator=torch.Generator().manual_seed(3)) % (NEURONS // 4)
    table = {"neuron": range(NEURONS), "expert": experts.numpy()}
    return pd.concat([pd.DataFrame({"layer": site.name, **table}) for site in feed_forward_sites(model)])


def converted(family: str, labels: pd.DataFrame, seed: int | None = None):
    model = tiny(family)
    split_by(model, labels, 8, "norm")
    for layer in dynamic_layers(model) if seed is not None else ():
        for weight in layer.router.parameters():
            torch.nn.init.normal_(weight, generator=torch.Generator().manual_seed(seed))
        layer.quantiles.copy_(torch.linspace(0, 1, layer.quantiles.shape[-1]))
    return model


@pytest.mark.parametrize("family", ["gpt2", "bert", "llama"])
def test_an_arm_rebuilt_from_its_files_has_the_same_logits(family, tmp_path):
    labels = labels_of(tiny(family))
    write_parquet(tmp_path / "labels.parquet", labels)
    first = converted(family, labels, seed=1)
    write_routers(tmp_path / "routers.safetensors", first)
    again = converted(family, read_labels(tmp_path / "labels.parquet"))
    read_routers(tmp_path / "routers.safetensors", again)
    for selector in (Selector("dynamic_k", 0.5), Selector("absolute", 0.5)):
        for model in (first, again):
            set_selector(model, selector)
        assert torch.equal(logits(first, inputs(family)), logits(again, inputs(family)))
    assert not torch.equal(logits(first, inputs(family)), logits(tiny(family), inputs(family)))


def test_routers_of_another_network_are_refused(tmp_path):
    write_routers(tmp_path / "routers.safetensors", converted("gpt2", labels_of(tiny("gpt2")), seed=1))
    with pytest.raises(UserError, match="routers.safetensors does not fit the network in bert.encoder.layer.0"):
        read_routers(tmp_path / "routers.safetensors", converted("bert", labels_of(tiny("bert"))))


def test_routers_of_too_many_layers_are_refused(tmp_path):
    model = converted("gpt2", labels_of(tiny("gpt2")), seed=1)
    write_routers(tmp_path / "routers.safetensors", model)
    del model.transformer.h[1]
    with pytest.raises(UserError, match="does not fit the network, which has no transformer.h.1.mlp"):
        read_routers(tmp_path / "routers.safetensors", model)


def test_routers_of_another_width_are_refused(tmp_path):
    write_routers(tmp_path / "routers.safetensors", converted("gpt2", labels_of(tiny("gpt2")), seed=1))
    other = tiny("gpt2")
    split_by(other, labels_of(other), 4, "norm")
    with pytest.raises(UserError, match="does not fit the network in transformer.h.0.mlp.router.v1"):
        read_routers(tmp_path / "routers.safetensors", other)


def test_thresholds_survive_a_round_trip(tmp_path):
    thetas = {0.5: {"a": 1.0, "b": 0.0}, 1e-5: {"a": 2.0, "b": 3.0}}
    given = Thresholds("gate", thetas, {0.5: {"a": 0.3, "b": 0.7}, 1e-5: {"a": 0.0, "b": 1e-5}})
    write_json(tmp_path / "thresholds.json", given.to_json())
    assert read_thresholds(tmp_path / "thresholds.json") == given


GIVEN = {"score": "gate", "thetas": {"0.5": {"a": 1}}, "densities": {"0.5": {"a": 0.4}}}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({}, "'score' is a required property"),
        ({key: GIVEN[key] for key in ("score", "thetas")}, "'densities' is a required property"),
        (GIVEN | {"thetas": []}, r"thetas: \[\] is not of type 'object'"),
        (GIVEN | {"thetas": {}}, "thetas: {} should be non-empty"),
        (GIVEN | {"thetas": {"half": {"a": 1}}}, "'half' does not match"),
        (GIVEN | {"thetas": {"0.5": {"a": "1"}}}, "'1' is not of type 'number'"),
        (GIVEN | {"densities": {"0.5": {"a": 1.5}}}, "1.5 is greater than the maximum of 1"),
        (GIVEN | {"score": "sum"}, "'sum' is not one of"),
    ],
)
def test_damaged_thresholds_are_one_line(content, problem, tmp_path):
    (tmp_path / "thresholds.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"thresholds.json is not as thresholds.schema.json .*{problem}.*; put a whole"):
        read_thresholds(tmp_path / "thresholds.json")
