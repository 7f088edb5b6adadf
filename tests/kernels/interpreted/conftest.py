"""Tiles small enough that small layers have several of them; products and roundings that are those of a GPU."""

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
    """16 x 32, 32 at a time; a test may ask for others by calling the fixture."""

    def use(tile: tiles.Tile) -> None:
        for key in tiles.GROUPED:
            monkeypatch.setitem(tiles.GROUPED, key, ((0, tile),))
        for table in (tiles.DYNAMIC, tiles.WIDE):
            for key in table:
                monkeypatch.setitem(table, key, tile)

    use(tiles.Tile(16, 32, 32, 4, 2))
    monkeypatch.setattr(plan, "ELEMENTS", 128)
    monkeypatch.setattr(combine, "WIDTH", 16)
    return use


@pytest.fixture(autouse=True)
def rounded_to_bfloat16(monkeypatch):
    """The interpreter cuts off what bfloat16 cannot hold; a GPU rounds to the nearest, of two to the even one."""
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
    """Rows are summed alike wherever in a tile they stand, as on a GPU; a BLAS may sum the last ones otherwise."""

    def dot(self, a, b, d, *_):
        products = a.data[:, :, None].astype(d.data.dtype) * b.data[None].astype(d.data.dtype)
        return interpreter.TensorHandle(products.sum(axis=1) + d.data, d.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", dot)
