"""Sizes of the pieces that a program works on: a static table, nothing is tried out at run time.

The figures are from compiling for sm_90 (registers, spills, shared memory, ``tests/kernels/test_compiled.py``) and
from counting waves on 132 multiprocessors; ``benchmarks/tiles.py`` times the alternatives on the device at hand.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import triton


@dataclass(frozen=True)
class Tile:
    """A program makes m x n numbers of a product, k at a time, with ``stages`` loads under way."""

    m: int
    n: int
    k: int
    warps: int
    stages: int

    def fitted(self, m: int | None = None, n: int | None = None, k: int | None = None) -> Tile:
        """No larger than a product of these sizes needs; 16 is the least that a tensor core takes."""
        sizes = {"m": m, "n": n, "k": k}
        return replace(
            self, **{axis: min(getattr(self, axis), _padded(s)) for axis, s in sizes.items() if s is not None}
        )


def _padded(size: int) -> int:
    return max(triton.next_power_of_2(size), 16)


# Products of grouped rows, by operation and arithmetic: (at least so many rows an expert, tile), most rows first.
# half: float16 and bfloat16; tf32; ieee: float32 without tensor cores.
GROUPED = {
    ("up", "half"): ((128, Tile(128, 128, 64, 8, 3)), (0, Tile(64, 128, 64, 4, 4))),
    ("up_relu", "half"): (
        (1024, Tile(128, 256, 64, 8, 3)),
        (128, Tile(128, 128, 64, 8, 3)),
        (0, Tile(64, 128, 64, 4, 4)),
    ),
    ("down", "half"): ((128, Tile(128, 128, 64, 8, 3)), (0, Tile(64, 128, 64, 4, 4))),
    ("hidden_gradient", "half"): ((0, Tile(128, 128, 64, 8, 3)),),
    ("hidden_gradient_sigmoid", "half"): ((0, Tile(128, 128, 64, 8, 3)),),
    ("weight_gradient", "half"): ((0, Tile(128, 128, 64, 8, 5)),),
    ("up", "tf32"): ((0, Tile(128, 128, 32, 8, 3)),),
    ("up_relu", "tf32"): ((0, Tile(128, 128, 32, 8, 3)),),
    ("down", "tf32"): ((0, Tile(128, 128, 32, 8, 3)),),
    ("hidden_gradient", "tf32"): ((0, Tile(128, 128, 32, 8, 3)),),
    # Twice as many columns need more registers than a thread has.
    ("hidden_gradient_sigmoid", "tf32"): ((0, Tile(128, 64, 32, 8, 3)),),
    ("weight_gradient", "tf32"): ((0, Tile(128, 128, 32, 8, 5)),),
    ("up", "ieee"): ((0, Tile(64, 64, 16, 4, 3)),),
    ("up_relu", "ieee"): ((0, Tile(64, 64, 16, 4, 3)),),
    ("down", "ieee"): ((0, Tile(64, 64, 16, 4, 3)),),
    ("hidden_gradient", "ieee"): ((0, Tile(64, 64, 16, 4, 3)),),
    ("hidden_gradient_sigmoid", "ieee"): ((0, Tile(64, 64, 16, 4, 3)),),
    # With 5 stages, Triton 3.7.1 keeps 8 bytes of registers in local memory; 3.6 and 3.9 need none with either.
    ("weight_gradient", "ieee"): ((0, Tile(64, 64, 16, 4, 7)),),
}


# Blocks of tokens (m) and pieces of neurons (n) of dynamic_ffn; k, the part of a token's row taken at a time.
DYNAMIC = {
    "half": Tile(64, 16, 512, 8, 3),
    # With 3 stages, Triton 3.7.1 keeps 24 bytes of registers in local memory; both have 2 pieces in shared memory.
    "half_gated": Tile(64, 16, 512, 8, 2),
    "tf32": Tile(64, 16, 32, 8, 3),
    "ieee": Tile(16, 16, 32, 4, 3),
}


# The same for rows too wide to be kept on chip; n is also the part of the hidden layer taken at a time.
WIDE = {
    "half": Tile(64, 64, 64, 4, 3),
    "tf32": Tile(64, 64, 32, 4, 3),
    "ieee": Tile(32, 32, 32, 4, 3),
}


# Blocks of tokens (m) of neuron_threshold; n, neurons of the hidden layer or columns of the output; k, the part of a
# sum taken at a time.  For few tokens: 16 is the least that a tensor core takes.
THRESHOLD = {
    "half": Tile(16, 64, 128, 4, 4),
    "tf32": Tile(16, 64, 64, 4, 4),
    "ieee": Tile(16, 32, 32, 4, 3),
}


GATE = Tile(32, 16, 128, 4, 3)
"""Tokens (m) of a program of the gate, and the part of their rows (k) taken at a time."""


def arithmetic(dtype: torch.dtype) -> str:
    """half, tf32 or ieee: float32 products use TF32 where PyTorch's own do."""
    if dtype != torch.float32:
        return "half"
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee"


def grouped_tile(operation: str, kind: str, pairs: int, experts: int) -> Tile:
    """The tile for an operation on so many pairs.  Only sizes known without asking the GPU decide."""
    return next(tile for rows, tile in GROUPED[operation, kind] if pairs >= rows * experts)


def dynamic_tile(kind: str, gated: bool) -> Tile:
    """The tile of dynamic_ffn."""
    return DYNAMIC.get(f"{kind}_gated", DYNAMIC[kind]) if gated else DYNAMIC[kind]


def options(dtype: torch.dtype, tile: Tile) -> dict:
    """What kernels of products take by name: how they multiply, and the pieces they work on, as BM, BN and BK."""
    return {
        "PRECISION": "tf32" if arithmetic(dtype) == "tf32" else "ieee",
        "UPCAST": interpreted() and dtype == torch.bfloat16,
        "BM": tile.m, "BN": tile.n, "BK": tile.k, "num_warps": tile.warps, "num_stages": tile.stages,
    }  # fmt: skip


def grouped_options(operation: str, dtype: torch.dtype, pairs: int, experts: int, n: int, k: int) -> tuple[int, dict]:
    """Programs of a kernel that multiplies rows [P, k] by their expert's weight [n, k], and what it takes by name."""
    tile = grouped_tile(operation, arithmetic(dtype), pairs, experts).fitted(n=n, k=k)
    programs = (pairs // tile.m + min(experts, pairs)) * triton.cdiv(n, tile.n)
    return programs, {"E": experts, "EP": triton.next_power_of_2(experts), "N": n, "K": k, **options(dtype, tile)}


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, which gets products of bfloat16 wrong unless widened."""
    return triton.knobs.runtime.interpret
