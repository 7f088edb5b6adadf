"""The checks of the other files fail for kernels that leave out a row, an expert or a term."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from planer.kernels.dynamic_ffn.triton import layer
from planer.kernels.expert_ffn.triton import layer as kernels
from tests.kernels import checks
from tests.kernels.checks import TOLERANCE, Dynamic, Layer, Threshold, dynamic_error, errors, threshold_error

LAST_ROW = "    live = p < end\n", "    live = p < end - 1\n"
LAST_EXPERT = "if expert >= E:", "if expert >= E - 1:"

EXPERTS = {
    "a product without the last row of each expert": ("grouped_gemm", *LAST_ROW),
    "a product without the last expert": ("grouped_gemm", *LAST_EXPERT),
    "a product of other tokens' rows": ("grouped_gemm", "source = tl.load(a_rows", "source = 0 * tl.load(a_rows"),
    "a product without bias": ("grouped_gemm", "result += tl.load(bias", "0 * tl.load(bias"),
    "a gated product without its gate": ("grouped_gemm", "result *= factor", "result *= 1.0"),
    "a sum without a token's last pair": ("combine", "live & (i < count)", "live & (i < count - 1)"),
    "a sum without gates": ("combine", "part *= tl.load(gate", "0 * tl.load(gate"),
    "hidden gradients without the last row of each expert": ("hidden_gradient", *LAST_ROW),
    "hidden gradients without the last expert": ("hidden_gradient", *LAST_EXPERT),
    "hidden gradients without the gate": ("hidden_gradient", "slope *= scale[:, None]", "slope *= 1.0"),
    "gated gradients without the other factor": ("hidden_gradient", "slope *= other", "slope *= 1.0"),
    "gate gradients of half of the neurons": ("hidden_gradient", "share += tl.sum", "share = tl.sum"),
    "gate gradients without the bias": ("hidden_gradient", "if b2 is not None:", "if b2 is None:"),
    "weight gradients without the last row of each expert": ("weight_gradient", "live = p < end", "live = p < end - 1"),
    "bias gradients without the gate": ("weight_gradient", "weight = tl.load(gate", "weight = 1.0 + 0 * tl.load(gate"),
}  # fmt: skip

DYNAMIC = {
    "without the last piece": ("layer", "tl.load(counts + block), SPLIT", "tl.load(counts + block) - 1, SPLIT"),
    "the experts of other tokens": ("layer", "tl.where(chosen != 0,", "tl.where(neuron[None, :] >= 0,"),
    "without the bias": ("layer", "total += tl.load(b2", "0 * tl.load(b2"),
    "only pieces that all tokens execute": ("pieces", "tl.max(chosen.to", "tl.min(chosen.to"),
    "wide, without the last piece": ("wide", "load(counts + block))", "load(counts + block) - 1)"),
    "wide, the experts of other tokens": ("wide", "tl.where(chosen != 0,", "tl.where(neuron[None, :] >= 0,"),
}  # fmt: skip

THRESHOLD = {
    "the neurons of other tokens": ("total = tl.where(runs,", "total = tl.where(inside,"),
    "the gate compared instead of the product": ("if not EARLY:", "if EARLY:"),
    "the limit of another neuron": ("tl.load(limits + neuron", "tl.load(limits + neuron // 2"),
    "without the bias": ("total += tl.load(b2", "0 * tl.load(b2"),
    "half of the neurons": ("range(part * BK, F,", "range(part * BK, F // 2,"),
    "the rows of one token": ("needed = tl.max((h != 0.0)", "needed = tl.min((h != 0.0)"),
}  # fmt: skip


def mutant(operation, name, old, new, folder):
    """The module planer.kernels.<operation>.triton.<name> with every ``old`` replaced, in a file, as Triton needs."""
    source = Path(importlib.util.find_spec(f"planer.kernels.{operation}.triton.{name}").origin).read_text()
    assert old in source
    path = folder / f"{name}.py"
    path.write_text(source.replace(old, new))
    spec = importlib.util.spec_from_file_location(f"mutant_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("name", "old", "new"), EXPERTS.values(), ids=EXPERTS.keys())
def test_wrong_experts_are_found(name, old, new, tmp_path, monkeypatch):
    monkeypatch.setattr(kernels, name, getattr(mutant("expert_ffn", name, old, new, tmp_path), name))
    gated = "other" in old or "factor" in old
    layer = Layer(tokens=20, activation="swiglu" if gated else "relu")
    assert max(errors(layer, torch.float32).values()) > 100 * TOLERANCE[torch.float32]


@pytest.mark.parametrize(("name", "old", "new"), DYNAMIC.values(), ids=DYNAMIC.keys())
def test_wrong_dynamic_experts_are_found(name, old, new, tmp_path, monkeypatch):
    wrong = mutant("dynamic_ffn", name, old, new, tmp_path)
    if name == "layer":
        monkeypatch.setattr(checks, "dynamic_kernels", wrong)
    elif name == "pieces":
        monkeypatch.setattr(layer, "active_pieces", wrong.active_pieces)
    else:
        monkeypatch.setattr(layer, "ON_CHIP", 0)
        monkeypatch.setattr(layer, "wide", wrong)
    assert dynamic_error(Dynamic(), torch.float32) > 100 * TOLERANCE[torch.float32]


@pytest.mark.parametrize(("old", "new"), THRESHOLD.values(), ids=THRESHOLD.keys())
def test_wrong_thresholds_are_found(old, new, tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "threshold_kernels", mutant("neuron_threshold", "layer", old, new, tmp_path))
    assert threshold_error(Threshold(), torch.float32) > 100 * TOLERANCE[torch.float32]
