"""One token at a time on this CPU, sparse against dense: python benchmarks/decode.py, make claims NAME=decode.

5 minutes.

- layers: feed-forward and attention layers of d_model 1024 with their residuals, as operators of the decode engine and
  in PyTorch.  Every call has another token and goes to the next of several copies of the layer.  Between two calls of a
  copy the other candidates read 1 GB, so that caches hold nothing of it, as in a whole network.
  PyTorch's weights lie where it puts them; the operators move theirs into huge pages.
- floor: sums over as many bytes as the dense network reads for a token, in turn with it: what reading its weights can
  take at best.  Weights are float32, bfloat16 and int8.
- network: the 800M shape of "Sparse is Enough in Scaling Transformers" (arXiv 2111.12763), 24 blocks of attention and
  feed-forward layer, 32,000 words, with random weights, dense and with sparse layers.  Its decoder alone: no encoder
  and no cross-attention.
- --shape 17B: layers of the shape that trax names its large one, one at a time; they do not fit memory together.

Candidates are timed in turn.  A ratio is the median over rounds.
Results go to benchmarks/results/<processor>-decode-<date>.json and, as tables, to standard output.  The file of
another shape or of some --sections has their names too.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import pandas as pd
import torch
from torch import Tensor, nn

from benchmarks.output import command_line, positive, section_option, section_suffix, start, table, write_results
from planer.errors import UserError
from planer.heads import HeadSpec, Softmax
from planer.heads.sparse_softmax import SparseSoftmax
from planer.kernels.cpp import build
from planer.kernels.huge_pages import into_huge_pages
from planer.measure import by_round, measure, summary
from planer.models import LanguageModel, initialise
from planer.models.decoder import Segments, Sequences, decoder_of
from planer.runtime import device_name, set_up_process
from planer.specs import Architecture, Attention, FeedForward
from planer.specs.block import BlockSpec
from planer.specs.sparse_attention import SparseAttention
from planer.specs.sparse_conv_attention import SparseConvAttention
from planer.specs.sparse_feed_forward import SparseFeedForward

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Sizes:
    """A shape, and how it is timed."""

    d_model: int = 1024
    d_inner: int = 4096
    sparse_d_inner: int = 6144
    """Of networks with sparse attention, which has fewer weights (the paper's recipe)."""
    heads: int = 16
    block_size: int = 64
    rank: int = 0
    """Of controllers; 0: d_model / block_size."""
    modules: int = 16
    depth: int = 24
    words: int = 32_000
    head_modules: int = 4
    copies: int = 12
    """Of a layer, called in turn."""
    memory: int = 128
    """Remembered positions, all there at the first timed token: PyTorch then keeps the keys of positions."""

    @property
    def attention(self) -> tuple[int, int]:
        """Heads and their width."""
        return self.heads, self.d_model // self.heads


SIZES = {"800M": Sizes(), "17B": Sizes(9216, 40_960, 65_536, 96, 256, 32, 64, copies=1)}
WARMUP = 3
"""Untimed calls."""


def networks(sizes: Sizes) -> dict[str, tuple[tuple[BlockSpec, BlockSpec], HeadSpec]]:
    """The blocks that alternate, and the head, by the network's name."""
    dense = Attention(*sizes.attention), FeedForward(sizes.d_inner)
    feed_forward = SparseFeedForward(sizes.d_inner, sizes.block_size, sizes.rank)
    convolved = SparseConvAttention(*sizes.attention, sizes.modules)
    both = convolved, SparseFeedForward(sizes.sparse_d_inner, sizes.block_size, sizes.rank)
    return {
        "dense": (dense, Softmax()),
        "sparse feed-forward": ((dense[0], feed_forward), Softmax()),
        "sparse attention": ((convolved, FeedForward(sizes.sparse_d_inner)), Softmax()),
        "sparse both": (both, Softmax()),
        "sparse both and head": (both, SparseSoftmax(sizes.head_modules)),
    }


def layers(sizes: Sizes) -> dict[str, BlockSpec]:
    """By the layer's name; attention sees one token, so that its projections take the time."""
    return {
        "feed-forward": FeedForward(sizes.d_inner),
        "sparse feed-forward": SparseFeedForward(sizes.d_inner, sizes.block_size, sizes.rank),
        "attention": Attention(*sizes.attention),
        "sparse attention": SparseAttention(*sizes.attention, sizes.modules),
        "sparse attention with convolutions": SparseConvAttention(*sizes.attention, sizes.modules),
    }


@torch.inference_mode(False)
def network(sizes: Sizes, blocks: tuple[BlockSpec, ...], head: HeadSpec, words: int) -> LanguageModel:
    """Random weights."""
    model = LanguageModel(Architecture(words, sizes.d_model, blocks, head=head))
    initialise(model, torch.Generator().manual_seed(0))
    return model.eval()


def reader(model: LanguageModel, sizes: Sizes, weights: str | None = "float32") -> Callable[[], Tensor]:
    """Reads one random token a call, after a prompt that fills the memory.  weights: None runs PyTorch."""
    words, draw = model.architecture.vocab_size, torch.Generator().manual_seed(1)
    prompt = torch.randint(words, (1, sizes.memory), generator=draw)
    state = model(prompt, mem_len=sizes.memory, same_length=True, attention="cached").state
    if weights is None:
        sequences = Segments(model, [state], sizes.memory, 0)
    else:
        sequences = Sequences(decoder_of(model, weights), [state], 1, sizes.memory, 0)
    return lambda: sequences.read(torch.randint(words, (1,), generator=draw))


def layer_calls(sizes: Sizes) -> dict[str, Callable[[], Tensor]]:
    """A step of each layer; the products of dense ones in PyTorch too."""
    calls = {}
    for name, spec in layers(sizes).items():
        ours, plain = (network(sizes, (spec,) * sizes.copies, Softmax(), 2) for _ in range(2))
        calls[name] = _in_turn(_steps(ours), sizes)
        if name == "feed-forward":
            calls["feed-forward in PyTorch"] = _in_turn([_forward(block) for block in plain.blocks], sizes)
        if name == "attention":
            calls["four projections in PyTorch"] = _in_turn([_projections(block) for block in plain.blocks], sizes)
    return calls


def _steps(model: LanguageModel) -> list[Callable[[Tensor], Tensor]]:
    """The operators of the blocks with an empty memory."""
    decoder = decoder_of(model)
    state = model(torch.zeros(1, 1, dtype=torch.int64), mem_len=0, attention="cached").state
    steps = [
        (step, step.start([entry], torch.zeros(1, dtype=torch.int64), decoder.positions(1, 1, 0), 1))
        for step, entry in zip(decoder.steps, state, strict=True)
    ]
    return [lambda x, step=step, cache=cache: step(x, cache) for step, cache in steps]


def _forward(block: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: block.norm(x + block.sublayer(x)[0])


def _projections(block: nn.Module) -> Callable[[Tensor], Tensor]:
    qkv, output, norm = block.sublayer.qkv, block.sublayer.output, block.norm
    return lambda x: norm(x + output(qkv(x)[:, : output.in_features]))


def _in_turn(functions: list[Callable[[Tensor], Tensor]], sizes: Sizes) -> Callable[[], Tensor]:
    """Calls the next function with the next of many random tokens."""
    tokens = torch.randn(997, 1, sizes.d_model, generator=torch.Generator().manual_seed(2))
    following = zip(itertools.cycle(functions), itertools.cycle(tokens), strict=False)

    def call() -> Tensor:
        function, x = next(following)
        return function(x)

    return call


@torch.inference_mode()
def measured_floor(options: argparse.Namespace, sizes: Sizes) -> Iterator[dict]:
    """A row for each type of weights: the dense network beside a sum over as many bytes."""
    blocks, head = networks(sizes)["dense"]
    model = network(sizes, blocks * sizes.depth, head, sizes.words)
    width = sizes.d_model
    count = sizes.depth * (4 * width**2 + 2 * width * sizes.d_inner) + sizes.words * width  # matrices, head included
    bytes_each = {"float32": 4, "bfloat16": 2, "int8": 1}
    memory = into_huge_pages(torch.ones(count))
    calls = {weights: reader(model, sizes, weights) for weights in bytes_each}
    sums = {f"sum, {weights}": memory[: count * size // 4].sum for weights, size in bytes_each.items()}
    ms = _in_rounds(calls | sums, options, "floor")
    for weights, size in bytes_each.items():
        row = compared("floor", weights, f"sum, {weights}", ms)
        speed = count * size / (row["base_median_ms"] / 1e3)
        yield row | {"bytes": count * size, "over_floor": 1 / row["speed_up"], "floor_bytes_per_s": speed}


@torch.inference_mode()
def measured_large_layers(options: argparse.Namespace, sizes: Sizes) -> Iterator[dict]:
    """A row for each layer, one at a time in memory, in turn with a sum over more bytes than caches hold."""
    memory, times = into_huge_pages(torch.ones(2**26)), {}
    for name, spec in layers(sizes).items():
        steps = _steps(network(sizes, (spec,), Softmax(), 2))
        ms = _in_rounds({name: _in_turn(steps, sizes), "sum": memory.sum}, options, name)
        del steps
        times[name] = ms[name].reset_index(drop=True)
    for name in layers(sizes):
        base = "attention" if "attention" in name else "feed-forward"
        if name != base:
            yield compared("layers", name, base, pd.DataFrame({name: times[name], base: times[base]}).dropna())


@torch.inference_mode()
def measured_layers(options: argparse.Namespace, sizes: Sizes) -> Iterator[dict]:
    """A row per comparison."""
    ms = _in_rounds(layer_calls(sizes), options, "layers")
    for name in layers(sizes):
        dense, plain = "feed-forward", "feed-forward in PyTorch"
        if "attention" in name:
            dense, plain = "attention", "four projections in PyTorch"
        for base in (dense, plain):
            if base != name:
                yield compared("layers", name, base, ms)


@torch.inference_mode()
def measured_networks(options: argparse.Namespace, sizes: Sizes) -> Iterator[dict]:
    """The dense network beside PyTorch, and each sparse network beside the dense one; two at a time in memory."""

    def made(name: str) -> LanguageModel:
        blocks, head = networks(sizes)[name]
        return network(sizes, blocks * sizes.depth, head, sizes.words)

    dense = {"dense": reader(made("dense"), sizes)}
    ms = _in_rounds(dense | {"dense in PyTorch": reader(made("dense"), sizes, None)}, options, "dense")
    yield compared("network", "dense", "dense in PyTorch", ms)
    for name in networks(sizes):
        if name != "dense":
            calls = dense | {name: reader(made(name), sizes)}
            yield compared("network", name, "dense", _in_rounds(calls, options, name))


def _in_rounds(calls: dict[str, Callable[[], Tensor]], options: argparse.Namespace, description: str) -> pd.DataFrame:
    return by_round(measure(calls, options.rounds, WARMUP, 0, options.seconds, CPU, description=description))


def compared(section: str, name: str, base: str, ms: pd.DataFrame) -> dict:
    """How many times faster one candidate is than another, and their times."""
    beside = {f"base_{key}": value for key, value in summary(ms[base]).items()}
    speed_up = float((ms[base] / ms[name]).median())
    return {"section": section, "name": name, "base": base, "speed_up": speed_up} | summary(ms[name]) | beside


def show(section: str, rows: list[dict]) -> None:
    """The rows of a section."""
    lines = [
        [row["name"], f"{row['median_ms']:.3f}", row["base"], f"{row['base_median_ms']:.3f}", f"{row['speed_up']:.2f}"]
        for row in rows
    ]
    table(section, ["", "ms a token", "beside", "ms a token", "times faster"], lines)


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--shape", choices=SIZES, default="800M", help="default: %(default)s")
    parser.add_argument("--threads", type=positive, default=1, help="default: %(default)s")
    parser.add_argument("--rounds", type=positive, default=60, help="calls of every candidate (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=30.0, help="most seconds a comparison (default: %(default)s)")
    section_option(parser, [*SECTIONS])
    options = parser.parse_args()
    if not build.available():
        raise UserError("there is no decode engine without a C++ compiler; install one or set CXX")
    torch.set_num_threads(options.threads)
    set_up_process()
    load, sizes, rows = os.getloadavg()[0], SIZES[options.shape], []
    print(f"{device_name(CPU)}, {options.threads} threads, torch {torch.__version__}, load before {load:.2f}")
    sections = {name: SECTIONS[name] for name in options.sections}
    for section, made in ({"layers": measured_large_layers} if options.shape == "17B" else sections).items():
        found = list(made(options, sizes))
        show(section, found)
        rows += found
    loads = {"load_before": load, "load_after": os.getloadavg()[0]}
    content = {"shape": options.shape, "threads": options.threads, "sizes": vars(sizes), **loads, "rows": rows}
    suffix = section_suffix(options.sections, [*SECTIONS]) if options.shape == "800M" else f"-{options.shape}"
    write_results(options.results, device_name(CPU), content, f"-decode{suffix}")


SECTIONS = {"layers": measured_layers, "floor": measured_floor, "network": measured_networks}


if __name__ == "__main__":
    start(main)
