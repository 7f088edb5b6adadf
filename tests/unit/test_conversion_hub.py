"""Converted networks saved and loaded by transformers, with planer and without."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import planer.pretrained
from planer.errors import UserError
from planer.pretrained.folder import ROUTERS

transformers = pytest.importorskip("transformers", reason="the package transformers is not installed")

from tests.unit.converted import converted, thresholded  # noqa: E402
from tests.unit.tiny_pretrained import FAMILIES, inputs, logits, tiny  # noqa: E402
from tests.unit.toy import ROOT  # noqa: E402

SELECTORS = {"dynamic_k": 0.4, "absolute": 0.5, "top_k": 2}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a family's converted network with dynamic-k; made on the first call."""
    root = tmp_path_factory.mktemp("converted")

    def folder(family: str):
        if not (root / family).exists():
            model = converted(family)
            planer.pretrained.select(model, "dynamic_k", SELECTORS["dynamic_k"], fast=False)
            model.save_pretrained(root / family)
        return root / family

    return folder


def loaded(folder, family: str) -> torch.nn.Module:
    return type(tiny(family)).from_pretrained(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_reloaded_network_gives_the_same_bits_with_every_selector(family, saved):
    model, again, x = converted(family), loaded(saved(family), family), inputs(family)
    dense = logits(tiny(family), x)
    for name, value in SELECTORS.items():
        planer.pretrained.select(model, name, value, fast=False)
        if name != "dynamic_k":  # the saved one
            planer.pretrained.select(again, name, value, fast=False)
        assert torch.equal(logits(again, x), logits(model, x))
        assert not torch.equal(logits(again, x), dense)
    planer.pretrained.select(again, "all")
    assert torch.equal(logits(again, x), dense)


@pytest.mark.parametrize("family", FAMILIES)
def test_thresholds_are_saved_and_loaded(family, tmp_path):
    model, x = thresholded(family), inputs(family)
    planer.pretrained.select(model, "product", 0.5, fast=False)
    model.save_pretrained(tmp_path)
    again, dense = loaded(tmp_path, family), logits(tiny(family), x)
    half, quarter = logits(again, x), thresholded(family)
    assert torch.equal(half, logits(model, x)) and not torch.equal(half, dense)
    for network in (again, quarter):
        planer.pretrained.select(network, "product", 0.25, fast=False)
    assert torch.equal(logits(again, x), logits(quarter, x)) and not torch.equal(logits(again, x), half)
    planer.pretrained.select(again, "all")
    assert torch.equal(logits(again, x), dense)
    with pytest.raises(
        UserError, match="selector: product 0.3 is not calibrated; allowed: all, product 0.25, product 0.5"
    ):
        planer.pretrained.select(again, "product", 0.3)


def test_a_network_that_is_not_converted_has_no_selector():
    with pytest.raises(UserError, match="GPT2LMHeadModel is not converted; load it after import planer.pretrained"):
        planer.pretrained.select(tiny("gpt2"), "all")


@pytest.mark.parametrize("value", ["x", None, True, float("inf"), [1]])
@pytest.mark.parametrize(("make", "selector"), [(converted, "top_k"), (thresholded, "product")])
def test_values_of_selectors_are_numbers(make, selector, value):
    with pytest.raises(UserError, match=f"^selector: {selector} of .*; give a finite number$"):
        planer.pretrained.select(make("gpt2"), selector, value)


def test_numbers_of_numpy_are_saved(tmp_path):
    model = converted("gpt2")
    planer.pretrained.select(model, "dynamic_k", np.float32(0.5))
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"]["value"] == 0.5


WITHOUT_PLANER = """
import sys, torch, transformers
from safetensors.torch import load_file, save_file
folder, *classes = sys.argv[1:]
given, logits = load_file(f"{folder}/inputs"), {}
for name in classes:
    model = getattr(transformers, name).from_pretrained(f"{folder}/{name}")
    for weight in model.parameters():
        weight.data = weight.data.clone()
    with torch.no_grad():
        logits[name] = model(given[name]).logits
save_file(logits, f"{folder}/logits")
assert "planer" not in sys.modules
import planer.pretrained
model = getattr(transformers, name).from_pretrained(f"{folder}/{name}")
assert any(type(module).__name__ == "DynamicFeedForward" for module in model.modules())
"""


def test_without_planer_a_converted_network_is_the_dense_one(saved, tmp_path):
    """With planer it has dynamic layers, also when planer is imported after transformers."""
    dense = {type(tiny(family)).__name__: (family, tiny(family)) for family in ("bert", "gpt2", "vit", "llama")}
    for name, (family, _) in dense.items():
        (tmp_path / name).symlink_to(saved(family))
    save_file({name: inputs(family) for name, (family, _) in dense.items()}, tmp_path / "inputs")
    command = [sys.executable, "-c", WITHOUT_PLANER, tmp_path, *dense]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "Unknown quantization type, got planer" in run.stderr, "the warning that docs/pretrained.md shows"
    found = load_file(tmp_path / "logits")
    for name, (family, model) in dense.items():
        assert torch.equal(found[name], logits(model, inputs(family))), name


def test_the_import_loads_neither_torch_nor_transformers():
    code = "import sys, planer.pretrained; assert not {'torch', 'transformers'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_have_the_names_that_the_family_gives_them(family, saved, tmp_path):
    tiny(family).save_pretrained(tmp_path)
    names, own = (set(load_file(folder / "model.safetensors")) for folder in (saved(family), tmp_path))
    assert {name for name in names if ROUTERS not in name} == own
    assert len(names - own) == 2 * 3, "two matrices and the quantiles of each layer's router"


def test_tied_weights_stay_tied(saved):
    model = loaded(saved("gpt2"), "gpt2")
    assert model.lm_head.weight.data_ptr() == model.transformer.wte.weight.data_ptr()
    assert "lm_head.weight" not in load_file(saved("gpt2") / "model.safetensors")


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_a_network_without_its_head_has_converted_layers(family, saved):
    base = transformers.AutoModel.from_pretrained(saved(family))
    planer.pretrained.select(base, "all")
    with torch.no_grad():
        expected = tiny(family).base_model(inputs(family)).last_hidden_state
        assert torch.equal(base(inputs(family)).last_hidden_state, expected)


def test_generated_text_is_the_same_after_a_reload(saved):
    model, again = converted("llama"), loaded(saved("llama"), "llama")
    planer.pretrained.select(model, "dynamic_k", SELECTORS["dynamic_k"], fast=False)
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    written = again.generate(inputs("llama"), **options)
    assert torch.equal(written, model.generate(inputs("llama"), **options))
    assert not torch.equal(written, tiny("llama").generate(inputs("llama"), **options))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@torch.no_grad()
def test_decoding_token_by_token_equals_a_pass_over_the_text(family, saved):
    model, x, cache = loaded(saved(family), family), inputs(family), None
    whole = logits(model, x)
    for t in range(x.shape[1]):
        output = model(x[:, t : t + 1], cache=cache, use_cache=True)
        cache = output.cache
        torch.testing.assert_close(output.logits[:, 0], whole[:, t], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_padded_batch_gives_the_results_of_its_texts_alone(saved):
    model, x = loaded(saved("bert"), "bert"), inputs("bert")
    mask = torch.ones_like(x)
    mask[1, 5:] = 0
    together = model(x, attention_mask=mask).logits
    torch.testing.assert_close(together[1, :5], model(x[1:, :5]).logits[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(together[0], model(x[:1]).logits[0], rtol=1e-5, atol=1e-5)


def test_a_selector_chosen_at_run_time_is_saved(saved, tmp_path):
    model = loaded(saved("bert"), "bert")
    planer.pretrained.select(model, "top_k", 2, fast=False)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(loaded(tmp_path, "bert"), inputs("bert")), logits(model, inputs("bert")))
    described = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert (described["selector"], described["value"]) == ("top_k", 2)


def test_layers_run_densely_where_experts_save_no_time(saved):
    model, x = loaded(saved("gpt2"), "gpt2"), inputs("gpt2")
    planer.pretrained.select(model, "top_k", 6)
    assert torch.equal(logits(model, x), logits(tiny("gpt2"), x)), "6 of 6 experts"


def test_a_converted_network_can_be_cast(saved):
    model, x = loaded(saved("gpt2"), "gpt2"), inputs("gpt2")
    single, half = logits(model, x), logits(model.to(torch.bfloat16), x)
    assert half.dtype == torch.bfloat16 and torch.equal(logits(loaded(saved("gpt2"), "gpt2").float(), x), single)


def write_changed(saved, tmp_path, change) -> None:
    """Write a copy of a folder with other weights or another description."""
    model = saved("gpt2")
    weights, config = load_file(model / "model.safetensors"), json.loads((model / "config.json").read_text())
    change(weights, config["quantization_config"])
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda w, c: w.pop("transformer.h.1.mlp.replacement.router.v2"), "lacks 1 router weights router.v2"),
        (lambda w, c: c.update(format=2), "has the format 2, this planer reads 1"),
        (lambda w, c: c.update(selector="best"), "selector: 'best' is unknown; allowed: all, dynamic_k"),
        (lambda w, c: c.update(kind="halves"), "kind is 'halves'; allowed: experts, thresholds"),
        (lambda w, c: c.update(expert_size=5), "expert_size is 5; it must divide the neurons of transformer.h.0.mlp"),
    ],
    ids=["weights", "format", "selector", "kind", "size"],
)
def test_a_folder_that_does_not_fit_is_refused(saved, tmp_path, change, reason):
    write_changed(saved, tmp_path, change)
    with pytest.raises(UserError, match=reason):
        loaded(tmp_path, "gpt2")
