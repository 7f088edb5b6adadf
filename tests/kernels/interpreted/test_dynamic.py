"""The Triton kernels of dynamic_ffn in the interpreter."""

from __future__ import annotations

import pytest
import torch

from planer.kernels import choice
from planer.kernels.dynamic_ffn import dynamic_ffn
from planer.kernels.dynamic_ffn.function import _best
from planer.kernels.dynamic_ffn.triton import layer as module
from planer.kernels.dynamic_ffn.triton import wide
from planer.kernels.triton.tiles import Tile
from tests.kernels.checks import DYNAMIC, TOLERANCE, Dynamic, dynamic_error

WHOLE, PARTS = Tile(16, 16, 64, 4, 2), Tile(16, 32, 16, 4, 2)
"""A token's row at once, as in half precision, or in parts, as in float32 without tensor cores."""


@pytest.fixture(params=[1, 3])
def parts(request, monkeypatch):
    """The number of programs that share a block of tokens."""
    monkeypatch.setattr(module, "SPLITS", request.param)


@pytest.mark.parametrize("tile", [WHOLE, PARTS], ids=["whole rows", "parts of rows"])
@pytest.mark.parametrize("layer", DYNAMIC.values(), ids=DYNAMIC.keys())
def test_outputs_equal_the_reference(layer, tile, small_tiles, monkeypatch):
    small_tiles(tile)
    monkeypatch.setattr(module, "SPLITS", 1 if tile is WHOLE else 3)
    assert dynamic_error(layer, torch.float32) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize("tile", [WHOLE, PARTS], ids=["whole rows", "parts of rows"])
def test_outputs_with_one_or_several_programs_per_block(tile, parts, small_tiles):
    small_tiles(tile)
    assert dynamic_error(Dynamic(), torch.float32) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize("activation", ["relu", "swiglu"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype, activation, parts, small_tiles):
    small_tiles(WHOLE)
    assert dynamic_error(Dynamic(activation=activation), dtype) <= TOLERANCE[dtype]


def run(layer, mask=None):
    x, w1, b1, w2, b2 = (value.float() for value in layer.values())
    return module.forward(x, w1, b1, w2, b2, layer.mask() if mask is None else mask)


def test_all_experts_together_equal_the_dense_layer():
    layer = Dynamic()
    x, w1, b1, w2, b2 = layer.values()
    everything = torch.ones_like(layer.mask())
    dense = torch.relu(x @ w1.T + b1) @ w2 + b2
    torch.testing.assert_close(run(layer, everything).double(), dense, rtol=1e-5, atol=1e-5)


def test_no_tokens():
    assert run(Dynamic(tokens=0)).shape == (0, Dynamic.d_model)


def test_two_runs_give_the_same_bits(parts):
    assert run(Dynamic()).equal(run(Dynamic()))


def test_a_token_does_not_depend_on_the_experts_of_its_neighbours(monkeypatch):
    monkeypatch.setattr(module, "SPLITS", 1)
    layer = Dynamic()
    mask = layer.mask()
    mask[20:30] = False
    mask[20] = layer.mask()[20]
    assert run(layer, mask)[20].equal(run(layer)[20])


@pytest.fixture
def two_passes(monkeypatch):
    """Every width takes two passes and several programs."""
    monkeypatch.setattr(module, "ON_CHIP", 0)
    monkeypatch.setattr(wide, "COLUMNS", 16)


@pytest.mark.parametrize(
    "name", ["size 6", "one expert", "odd width", "one token", "none", "few", "SiLU", "gated SiLU, odd width"]
)
def test_wide_rows(name, two_passes):
    assert dynamic_error(DYNAMIC[name], torch.float32) <= TOLERANCE[torch.float32]


def test_the_widest_rows(small_tiles):
    small_tiles(Tile(16, 32, 512, 4, 2))
    layer = Dynamic(tokens=3, d_model=8_192, size=3, experts=2, activation="swiglu")
    assert dynamic_error(layer, torch.float32) <= 2 * TOLERANCE[torch.float32]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_wide_rows_in_half_precision(dtype, two_passes):
    assert dynamic_error(Dynamic(d_model=37), dtype) <= TOLERANCE[dtype]


def test_a_row_that_is_too_wide_takes_another_backend(monkeypatch):
    """The next of the table, or masked_dense, which takes every size."""
    x, w, b, mask = torch.ones(2, 8_193), torch.ones(4, 8_193), torch.ones(4), torch.ones(2, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="backend triton needs a width of at most 8,192, which is 8,193"):
        dynamic_ffn(x, w, b, w, x[0], mask, backend="triton")
    monkeypatch.setattr(choice, "order", lambda *_: ("triton",))
    assert _best(x, w, mask) == "masked_dense" and _best(x[:, 1:], w[:, 1:], mask) == "triton"
    assert torch.equal(dynamic_ffn(x, w, b, w, x[0], mask), dynamic_ffn(x, w, b, w, x[0], mask, "masked_dense"))
