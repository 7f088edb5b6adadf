"""What a mixture of experts costs beside a feed-forward layer: python benchmarks/mixture_latency.py; under 3 minutes.

A top-1 mixture of 8 experts does as many products per token as one feed-forward layer of the same d_inner, 4 d_model.
What it costs more are router, choice, grouping and copies of rows, weights of eight experts that come from memory, and
products of an eighth of the rows.  Ratios are medians over rounds of the time of the mixture over the layer's in
inference, with balanced routing; both are timed in turn, by every kernel that this processor has.
Results go to benchmarks/results/<processor>-mixture-latency-<threads>-threads-<date>.json and, as a table, to standard
output.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from benchmarks.experts import Sizes, case, providers
from benchmarks.output import command_line, positive, start, table, write_results
from planer.kernels.expert_ffn import BACKENDS, unsupported
from planer.measure import by_round, measure, summary
from planer.runtime import device_name, set_up_process

CPU, DTYPE = torch.device("cpu"), torch.float32
WIDTHS = (128, 256, 512, 1024)
EXPERTS = 8
TOKENS = (64, 256, 1024, 2048, 4096)
BAR = 1.1
"""Time over a feed-forward layer's that a mixture may take to be called as fast."""


def measured(widths: tuple[int, ...], tokens: tuple[int, ...], rounds: int, seconds: float) -> Iterator[dict]:
    """A row per width, tokens of a call and kernel, with the ratio to the feed-forward layer."""
    for width in widths:
        sizes = Sizes(width, 4 * width, EXPERTS)
        kernels = [name for name in BACKENDS[1:] if unsupported(name, CPU, DTYPE, width, 4 * width) is None]
        for count in tokens:
            made = providers(sizes, case(sizes, count, 1, "balanced", DTYPE, CPU), tuple(kernels))
            calls = {name: torch.inference_mode()(call) for name, call, _ in made if name in ("dense", *kernels)}
            what = f"d_model {width}, {count} tokens"
            ms = by_round(measure(calls, rounds, 2, 0, seconds, CPU, description=what))
            for kernel in kernels:
                ratio = float((ms[kernel] / ms["dense"]).median())
                dense = {f"dense_{name}": value for name, value in summary(ms["dense"]).items()}
                row = {"d_model": width, "tokens": count, "kernel": kernel, "ratio": ratio}
                yield row | summary(ms[kernel]) | dense


def show(rows: list[dict], tokens: tuple[int, ...]) -> None:
    """Ratios by width and kernel, and where the fastest kernel reaches the bar."""
    ratios = {(row["d_model"], row["kernel"], row["tokens"]): row["ratio"] for row in rows}
    lines = [
        [f"{width}", kernel, *(f"{ratios[width, kernel, count]:.2f}" for count in tokens)]
        for width, kernel in dict.fromkeys((row["d_model"], row["kernel"]) for row in rows)
    ]
    head = ["d_model", "kernel", *(f"{count} tokens" for count in tokens)]
    table("A top-1 mixture of 8 experts: time over that of a feed-forward layer", head, lines)
    reached = [row for row in rows if row["ratio"] <= BAR]
    found = [f"d_model {r['d_model']}, {r['tokens']} tokens, {r['kernel']}: {r['ratio']:.2f}" for r in reached]
    print(f"at most {BAR:g} feed-forward layers: {'; '.join(found) or 'nowhere'}")


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--threads", type=positive, default=torch.get_num_threads(), help="default: %(default)s")
    parser.add_argument("--widths", type=positive, nargs="+", default=WIDTHS, help="d_model (default: %(default)s)")
    parser.add_argument("--tokens", type=positive, nargs="+", default=TOKENS, help="of a call (default: %(default)s)")
    parser.add_argument("--rounds", type=positive, default=40, help="calls of every candidate (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=6.0, help="most seconds a comparison (default: %(default)s)")
    options = parser.parse_args()
    if min(options.widths) < EXPERTS:
        parser.error(f"--widths: {min(options.widths)} is below the number of experts, {EXPERTS}")
    torch.set_num_threads(options.threads)
    set_up_process()
    load = os.getloadavg()[0]
    print(f"{device_name(CPU)}, {options.threads} threads, torch {torch.__version__}, load before {load:.2f}")
    rows = list(measured(tuple(options.widths), tuple(options.tokens), options.rounds, options.seconds))
    show(rows, tuple(options.tokens))
    content = {
        "threads": options.threads,
        "load_before": load,
        "load_after": os.getloadavg()[0],
        "bar": BAR,
        "rows": rows,
    }
    write_results(options.results, device_name(CPU), content, f"-mixture-latency-{options.threads}-threads")


if __name__ == "__main__":
    start(main)
