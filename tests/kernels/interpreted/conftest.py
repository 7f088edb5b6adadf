"""Small tiles, so that small layers have several; products and rounding as on a GPU."""

from __future__ import annotations

import numpy as np
import pytest
import triton.language as tl
from triton.runtime import interpreter

from planer.kernels.expert_ffn.triton import combine
from planer.kernels.routing.triton import plan
from planer.kernels.triton import tiles


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Tiles of 16 x 32 with 32 columns at a time; a test calls the fixture to use others."""

    def use(tile: tiles.Tile) -> None:
        for key in tiles.GROUPED:
            monkeypatch.setitem(tiles.GROUPED, key, ((0, tile),))
        for table in (tiles.DYNAMIC, tiles.WIDE, tiles.THRESHOLD):
            for key in table:
                monkeypatch.setitem(table, key, tile)

    use(tiles.Tile(16, 32, 32, 4, 2))
    monkeypatch.setattr(plan, "ELEMENTS", 128)
    monkeypatch.setattr(combine, "WIDTH", 16)
    return use


@pytest.fixture(autouse=True)
def rounded_to_bfloat16(monkeypatch):
    """The interpreter truncates to bfloat16; a GPU rounds to the nearest, ties to even."""
    convert = interpreter._convert_float

    def rounding(values, source, target, mode):
        if (source, target) != (tl.float32, tl.bfloat16):
            return convert(values, source, target, mode)
        bits = np.frombuffer(values.tobytes(), np.uint32)
        whole = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
        return np.where(np.isnan(values.ravel()), np.uint16(0x7FFF), whole).reshape(values.shape)

    monkeypatch.setattr(interpreter, "_convert_float", rounding)


@pytest.fixture(autouse=True)
def products_in_one_order(monkeypatch):
    """Every row of a tile is summed in the same order, as on a GPU; a BLAS may sum the last rows in another."""

    def dot(self, a, b, d, *_):
        products = a.data[:, :, None].astype(d.data.dtype) * b.data[None].astype(d.data.dtype)
        return interpreter.TensorHandle(products.sum(axis=1) + d.data, d.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", dot)
