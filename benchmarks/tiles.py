"""Where the time of a mixture of experts goes, and what other tiles would take: python benchmarks/tiles.py.

Each step is timed by itself, in bfloat16 with balanced routing, as a CUDA graph with cold caches, with the shipped tile
and with alternatives; beside it stands the product of the same size by PyTorch.  The fastest tiles belong into the
table planer/kernels/triton/tiles.py, where tests/kernels/test_compiled.py checks that they compile without spills.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.experts import Sizes, case
from benchmarks.graphs import candidate, interleaved
from planer.kernels.expert_ffn.triton.combine import combine
from planer.kernels.expert_ffn.triton.grouped_gemm import grouped_gemm
from planer.kernels.expert_ffn.triton.hidden_gradient import hidden_gradient
from planer.kernels.expert_ffn.triton.weight_gradient import weight_gradient
from planer.kernels.routing import route
from planer.kernels.triton import tiles
from planer.kernels.triton.tiles import Tile

ROUNDS = 30

PRODUCTS = [
    Tile(m, n, k, warps, stages)
    for m, n, k, warps in (
        (128, 256, 64, 8), (256, 128, 64, 8), (128, 128, 64, 8), (128, 128, 64, 4), (64, 256, 64, 4), (64, 128, 64, 4),
        (128, 64, 64, 4), (128, 128, 128, 8), (128, 256, 32, 8),
    )
    for stages in (3, 4)
]  # fmt: skip
ALTERNATIVES = {
    "up_relu": PRODUCTS,
    "down": PRODUCTS,
    "hidden_gradient": PRODUCTS,
    "weight_gradient": [
        Tile(m, n, k, warps, stages)
        for m, n, k, warps in (
            (128, 128, 64, 8), (128, 256, 64, 8), (128, 128, 32, 8), (64, 128, 64, 4), (128, 128, 64, 4),
        )
        for stages in (3, 5, 7)
    ],
}  # fmt: skip


def steps(tokens: int, k: int, sizes: Sizes, device: torch.device) -> Iterator[tuple[str, str | None, Callable, float]]:
    """Name, operation in the table of tiles, call and FLOPs of every step of a pass forward and backward."""
    dtype = torch.bfloat16
    mixture = case(sizes, tokens, k, "balanced", dtype, device)
    with torch.inference_mode():
        pairs, _, plan = route(mixture.x, mixture.gate, k, probabilities=False)
        x, (w1, b1, w2, b2) = mixture.x.detach(), (w.detach() for w in mixture.weights)
        hidden, dy = (
            torch.randn(len(plan.token), width, device=device, dtype=dtype) for width in (w1.shape[1], x.shape[1])
        )
        y, dy = torch.empty_like(x), dy[:tokens]
    count, flops = len(plan.token), sizes.flops(tokens, k) / 2
    up = {"pairs": count, "a_rows": plan.token, "bias": b1, "activation": "relu"}
    rows = torch.empty_like(x) if k == 1 else x.new_empty(count, x.shape[1])
    down = {"pairs": count, **({"out_rows": plan.token} if k == 1 else {})}
    yield "gate", None, partial(route, mixture.x, mixture.gate, k, False), 0.0
    yield "up", "up_relu", partial(grouped_gemm, "up_relu", x, w1, plan.offsets, hidden, **up), flops
    yield "down", "down", partial(grouped_gemm, "down", hidden, w2, plan.offsets, rows, bias=b2, **down), flops
    if k > 1:
        yield "combine", None, partial(combine, rows, plan.inverse, plan.token_offsets, pairs.gate, k, y), 0.0
    gradient = dy, w2, b2, pairs.gate, plan.order, plan.token, plan.offsets, hidden, None, "relu"
    yield "dz", "hidden_gradient", partial(hidden_gradient, *gradient), flops
    dx = partial(grouped_gemm, "down", hidden, w1, plan.offsets, rows, transposed=True, **down)
    yield "dx", "down", dx, flops
    yield "dw1", "weight_gradient", partial(weight_gradient, hidden, x, plan.offsets, w1, b1, y_rows=plan.token), flops
    dw2 = {"x_rows": plan.token, "gate": pairs.gate, "order": plan.order}
    yield "dw2", "weight_gradient", partial(weight_gradient, dy, hidden, plan.offsets, w2, b2, **dw2), flops
    gathered = x[plan.token]
    yield "PyTorch up", None, lambda: F.linear(gathered, w1[0], b1[0]), flops
    yield "PyTorch down", None, lambda: F.linear(hidden, w2[0], b2[0]), flops
    yield "PyTorch dw", None, lambda: hidden.t() @ gathered, flops


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[4_096, 12_288, 32_768])
    parser.add_argument("--k", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--shipped", action="store_true", help="only the shipped tiles")
    parser.add_argument("--best", type=int, default=3, help="alternatives shown of each step")
    parser.add_argument("--d-model", type=int, default=Sizes.d_model)
    parser.add_argument("--d-inner", type=int, default=Sizes.d_inner)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not tiles.interpreted():
        sys.exit("benchmarks/tiles.py: there is no CUDA device; with TRITON_INTERPRET=1 small sizes run on a CPU")
    sizes = Sizes(options.d_model, options.d_inner)
    for tokens in options.tokens:
        for k in options.k:
            print(f"\n{tokens} tokens, top-{k}: us, TFLOP/s, tile (m, n, k, warps, stages)", flush=True)
            with torch.inference_mode():
                for step in steps(tokens, k, sizes, device):
                    show(*step, device, options)


def show(name: str, operation: str | None, call: Callable, flops: float, device: torch.device, options) -> None:
    ready = {"shipped": candidate(call, device)}
    wrong = 0
    for tile in [] if options.shipped else ALTERNATIVES.get(operation, []):
        with mock.patch.dict(tiles.GROUPED, {(operation, "half"): ((0, tile),)}):
            try:
                ready[f"{tile.m} {tile.n} {tile.k} {tile.warps} {tile.stages}"] = candidate(call, device)
            except Exception:  # too much shared memory, or too many registers
                wrong += 1
    medians = {tile: float(np.median(us)) for tile, us in interleaved(ready, ROUNDS, device).items()}
    shipped = medians.pop("shipped")
    fastest = sorted(medians, key=medians.get)[: options.best]
    text = "   ".join([f"{shipped:.1f} us"] + [f"{flops / shipped / 1e6:.0f} TFLOP/s"] * (flops > 0))
    others = "".join(f" | {medians[tile]:.1f}: {tile}" for tile in fastest)
    print(f"{name:12} {text}{others}{f' | {wrong} did not run' if wrong else ''}", flush=True)


if __name__ == "__main__":
    main()
