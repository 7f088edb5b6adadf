"""Every kernel with every shipped tile compiles for Hopper, without spills and with overlapping loads.

No GPU is needed: the launchers run on tensors without data, and their launches are compiled for sm_90.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import re
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from unittest import mock

import pytest
import torch

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from planer.kernels.activations import factors, function_of  # noqa: E402
from planer.kernels.dynamic_ffn.triton import layer as dynamic_ffn  # noqa: E402
from planer.kernels.expert_ffn.products import Layer  # noqa: E402
from planer.kernels.expert_ffn.triton import layer as expert_ffn  # noqa: E402
from planer.kernels.neuron_threshold.triton import layer as neuron_threshold  # noqa: E402
from planer.kernels.routing import Plan  # noqa: E402
from planer.kernels.routing.triton import gate, plan  # noqa: E402
from planer.kernels.triton import tiles  # noqa: E402

SHARED_MEMORY = 232_448
"""Largest shared memory of a block on Hopper, in bytes."""
D, INNER, EXPERTS = 512, 2048, 8
POINTER = {
    torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int64: "*i64", torch.int32: "*i32",
    torch.uint8: "*u8",
}  # fmt: skip
KINDS = {"bf16": (torch.bfloat16, False), "tf32": (torch.float32, True), "ieee": (torch.float32, False)}


@dataclasses.dataclass(frozen=True)
class Launch:
    """A kernel and the arguments for which Triton compiles it."""

    kernel: object
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, object], ...]
    divisible: tuple[int, ...]
    """Arguments known to be multiples of 16, by position."""
    warps: int
    stages: int

    @property
    def name(self) -> str:
        return self.kernel.fn.__name__

    def __getitem__(self, constant: str):
        return dict(self.constants)[constant]


@dataclasses.dataclass(frozen=True)
class Code:
    registers: int
    stack: int
    shared: int
    ptx: str


def launches(call) -> list[Launch]:
    """The different launches of a call on tensors without data."""
    found = []

    def record(kernel, *args, grid, warmup, num_warps=4, num_stages=3, **kwargs):
        assert all(size > 0 for size in grid)
        given = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
        signature, constants, divisible = {}, {}, []
        for position, parameter in enumerate(kernel.params):
            value = given[parameter.name]
            if isinstance(value, torch.Tensor):
                signature[parameter.name] = POINTER[value.dtype]
                divisible.append(position)
            elif parameter.is_constexpr or value is None or (value == 1 and not parameter.do_not_specialize):
                signature[parameter.name] = "constexpr"
                constants[parameter.name] = value
            else:
                signature[parameter.name] = "i32"
                if value % 16 == 0 and not parameter.do_not_specialize:
                    divisible.append(position)
        found.append(
            Launch(kernel, tuple(signature.items()), tuple(constants.items()), tuple(divisible), num_warps, num_stages)
        )

    with mock.patch.object(triton.runtime.jit.JITFunction, "run", record):
        call()
    return list(dict.fromkeys(found))


@cache
def compiled(launch: Launch) -> Code:
    names = launch.kernel.arg_names
    source = ASTSource(
        fn=launch.kernel,
        signature=dict(launch.signature),
        constexprs={(names.index(name),): value for name, value in launch.constants},
        attrs={(position,): [["tt.divisibility", 16]] for position in launch.divisible},
    )
    options = {"num_warps": launch.warps, "num_stages": launch.stages, "enable_fp_fusion": True}
    code = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(code.asm["cubin"])
        usage = subprocess.run([tool, "-res-usage", file.name], check=True, capture_output=True, text=True).stdout
    registers, stack = (int(re.search(rf"{field}:(\d+)", usage)[1]) for field in ("REG", "STACK"))
    return Code(registers, stack, code.metadata.shared, code.asm["ptx"])


@contextlib.contextmanager
def tf32_is(allowed: bool):
    matmul = torch.backends.cuda.matmul
    before, matmul.allow_tf32 = matmul.allow_tf32, allowed
    yield
    matmul.allow_tf32 = before


def meta(*shape, dtype):
    return torch.empty(*shape, dtype=dtype, device="meta")


def layer(kind, tokens, k, activation="relu", gated=True, dropout=False) -> list[Launch]:
    """Launches of top-k experts, forward and backward; k = 0: tokens differ in their number of experts."""
    dtype, tf32 = KINDS[kind]
    pairs = tokens * max(k, 1)
    rows = factors(activation) * INNER
    shapes = (tokens, D), (EXPERTS, rows, D), (EXPERTS, rows), (EXPERTS, D, INNER), (EXPERTS, D)
    values = [meta(*shape, dtype=dtype) for shape in shapes]
    gate = meta(pairs, dtype=torch.float32) if gated else None
    order, inverse, token = (meta(pairs, dtype=torch.int64) for _ in range(3))
    offsets, token_offsets = meta(EXPERTS + 1, dtype=torch.int64), meta(tokens + 1, dtype=torch.int64)
    keep = meta(pairs, INNER, dtype=dtype) if dropout else None
    experts = Layer(*values, gate, Plan(order, inverse, token, offsets, token_offsets), keep, k, activation)

    def call():
        expert_ffn.backward(experts, *expert_ffn.forward(experts))

    with tf32_is(tf32):
        return launches(call)


def dynamic(kind, tokens, width=D, activation="relu") -> list[Launch]:
    dtype, tf32 = KINDS[kind]
    rows = factors(activation) * INNER
    shapes = (tokens, width), (rows, width), (rows,), (INNER, width), (width,)
    arguments = [*(meta(*s, dtype=dtype) for s in shapes), meta(tokens, INNER // 16, dtype=torch.bool)]
    with tf32_is(tf32):
        return launches(lambda: dynamic_ffn.forward(*arguments, function_of(activation)))


def threshold(kind, tokens, early, activation="swiglu") -> list[Launch]:
    dtype, tf32 = KINDS[kind]
    rows = factors(activation) * INNER
    shapes = (tokens, D), (rows, D), (rows,), (INNER, D), (D,)
    arguments = [*(meta(*s, dtype=dtype) for s in shapes), meta(INNER, dtype=torch.float32)]
    with tf32_is(tf32):
        return launches(lambda: neuron_threshold.forward(*arguments, early, function_of(activation)))


def everything() -> list[Launch]:
    found = []
    for kind in KINDS:
        for tokens, k in ((12_288, 1), (4_096, 1), (512, 1), (12_288, 2), (12_288, 0)):
            found += layer(kind, tokens, k)
        for tokens in (12_288, 512):
            found += layer(kind, tokens, 1, activation="gelu", dropout=True)
        for activation in ("gelu_tanh", "silu", "swiglu"):
            found += layer(kind, 12_288, 1, activation=activation, dropout=True)
        found += layer(kind, 512, 1, activation="swiglu", dropout=True)
        for tokens in (12_288, 4_096, 512):
            found += layer(kind, tokens, 1, dropout=True)
        for activation in ("relu", "swiglu"):
            for tokens, width in ((12_288, D), (64, D), (512, 8_192)):
                found += dynamic(kind, tokens, width, activation)
        for early, activation in ((True, "swiglu"), (False, "swiglu"), (False, "gelu")):
            found += threshold(kind, 1, early, activation)
        found += threshold(kind, 4_096, False)
    for dtype in (torch.bfloat16, torch.float32):
        x, weight = meta(12_288, D, dtype=dtype), meta(EXPERTS, D, dtype=dtype)
        for k in (1, 2):
            found += launches(functools.partial(gate.gate, x, weight, k))
    expert = meta(24_576, dtype=torch.int64)
    found += launches(lambda: plan.plan(expert, expert, EXPERTS, 2))
    found += launches(lambda: plan.plan(expert, expert, 128, None))
    return list(dict.fromkeys(found))


def label(launch: Launch) -> str:
    sizes = "x".join(str(launch[name]) for name in ("BM", "BN", "BK") if name in dict(launch.constants))
    types = {dict(launch.signature).get(name) for name in ("a", "x", "dy", "rows")} - {None}
    kind = "-".join((*sorted(types), dict(launch.constants).get("PRECISION", ""))).replace("*", "")
    activation = dict(launch.constants).get("ACTIVATION") or ""
    gated = "gated-" * bool(dict(launch.constants).get("GATED"))
    return f"{launch.name.strip('_')}-{kind}-{sizes}-w{launch.warps}-s{launch.stages}-{gated}{activation}"


LAUNCHES = everything() if os.environ.get("TRITON_INTERPRET") != "1" else []


@pytest.mark.parametrize("launch", LAUNCHES, ids=label)
def test_compiles_for_hopper(launch):
    code = compiled(launch)
    assert code.stack == 0, f"{code.stack} bytes of registers in local memory"
    assert code.shared <= SHARED_MEMORY
    if launch.name in BUFFERS:
        check_product(launch, code)


BUFFERS = {
    "_grouped_gemm": lambda stages: stages,
    "_hidden_gradient": lambda stages: stages,
    "_weight_gradient": lambda stages: (stages - 1) // 2 + 1,
    "_dynamic_ffn": lambda stages: 2,
}
"""Pieces of the operands in shared memory, by number of stages."""


def check_product(launch: Launch, code: Code) -> None:
    """Assert that tensor cores are used and that loads overlap with products."""
    constants, signature = dict(launch.constants), dict(launch.signature)
    width = 2 if "*bf16" in signature.values() else 4
    ieee = width == 4 and constants["PRECISION"] == "ieee"
    assert ("wgmma.mma_async" in code.ptx) == (not ieee)
    assert "mma.sync" not in code.ptx
    assert "cp.async" in code.ptx
    buffers = BUFFERS[launch.name](launch.stages) - ieee
    if launch.name == "_dynamic_ffn":
        if constants["BK"] < constants["DP"]:
            return
        piece = (2 + constants["GATED"]) * constants["BN"] * constants["DP"] * width
        kept = constants["BM"] * constants["DP"] * width
    else:
        piece = (constants["BM"] + constants["BN"]) * constants["BK"] * width
        kept = 0
    assert kept + buffers * piece <= code.shared < kept + (buffers + 1) * piece


def test_every_shipped_tile_is_launched():
    def launched(*names):
        sizes = {tuple(launch[size] for size in ("BM", "BN", "BK")) + (launch.warps, launch.stages)
                 for launch in LAUNCHES if launch.name in names}  # fmt: skip
        return {tiles.Tile(*size) for size in sizes}

    products = launched("_grouped_gemm", "_hidden_gradient", "_weight_gradient")
    assert {t for table in tiles.GROUPED.values() for _, t in table} == products
    assert set(tiles.DYNAMIC.values()) == launched("_dynamic_ffn")
    assert set(tiles.WIDE.values()) == launched("_wide_hidden")
    assert set(tiles.THRESHOLD.values()) == launched("_threshold_hidden")


def test_a_spill_is_found():
    launch = next(launch for launch in LAUNCHES if launch.name == "_hidden_gradient")
    large = tuple((name, 256 if name == "BN" else value) for name, value in launch.constants)
    assert compiled(dataclasses.replace(launch, constants=large, warps=4)).stack > 0


def test_loads_that_do_not_overlap_are_found():
    launch = next(launch for launch in LAUNCHES if launch.name == "_grouped_gemm")
    with pytest.raises(AssertionError):
        check_product(launch, compiled(dataclasses.replace(launch, stages=1)))
