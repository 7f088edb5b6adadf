"""Benchmarks of the kernels on a CPU: python benchmarks/cpu.py, or make bench; some minutes on 2 cores.

Every comparison times its candidates in turn, and what is compared is compared within a round.  Results go to
benchmarks/results/<processor>-<date>.json and, as tables, to standard output.  auto is what the layers use.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.experts import Case, Sizes, case, forward_backward, providers
from benchmarks.output import command_line, positive, start, table, write_results
from planer.kernels.dynamic_ffn import dynamic_ffn, unsupported
from planer.measure import by_round, measure, summary
from planer.progress import Progress
from planer.runtime import device_name, set_up_process

CPU = torch.device("cpu")
TOKENS = 1024
MODES = ("forward", "forward+backward")

EXPERT_BARS = {(1, MODES[0]): 1.25, (1, MODES[1]): 1.45, (2, MODES[0]): 2.3, (2, MODES[1]): 2.5}
"""Time of a mixture over that of a dense layer, by experts per token and mode: what 2 cores should reach."""

DYNAMIC_BARS = {(1024, 128, 0.1): 0.22, (1024, 16, 0.05): 0.4, (1024, 6, 0.05): 0.65, (1, 16, 0.05): 0.2}
"""Time of a layer that executes some neurons over that of the dense one, by tokens, size of experts and share."""

NOTES = f"""\
Why a mixture takes more than its share of a dense layer's time, 1.00 for top-1 and 2.00 for top-2 ({TOKENS} tokens):
- "products" are the two products of every expert on {TOKENS // 8} rows and nothing else, all threads at one product.
  The weights of 8 experts, 67 MB, come from memory where those of one layer, 8 MB, stay in the cache, and products of
  {TOKENS // 8} rows have less to do for every number they read.  Backward reads the weights once more and writes as
  many gradients, of which a dense layer has an eighth.
- "auto" pays for router, choice and grouping of tokens, copies of rows, and, for top-2, the sum over a token's experts.
  It can be below "products" all the same: where experts have about as many rows each, a thread takes whole experts,
  so that threads need not wait for each other twice an expert.
A dense layer is what F.linear, ReLU and F.linear take, with PyTorch's threads."""

SIZES = Sizes()
SMALL = Sizes(128, 512, 8)
"""Layers of the experiment demo."""


class Session:
    """Rows found so far, and how long to look for each."""

    def __init__(self, rounds: int, seconds: float):
        self.rounds, self.seconds, self.rows = rounds, seconds, []

    def compare(self, calls: dict[str, Callable[[], object]], **what) -> None:
        """Time calls against each other; ratios are medians over rounds of the ratio to the first, the dense layer."""
        ms = by_round(measure(calls, self.rounds, 2, 0, self.seconds, CPU, description=str(what["section"])))
        ratios = ms.div(ms["dense"], axis=0).median()
        self.rows += [{**what, "provider": name, **summary(ms[name]), "ratio": float(ratios[name])} for name in calls]

    def find(self, **what) -> list[dict]:
        return [row for row in self.rows if what.items() <= row.items()]


def experts(session: Session) -> Iterator[None]:
    """Mixtures of experts beside a dense layer, in inference and in training."""
    grid = [(SIZES, k, routing) for k in (1, 2) for routing in ("balanced", "zipf", "one_hot")]
    for sizes, k, routing in grid + [(SMALL, k, "balanced") for k in (1, 2)]:
        mixture = case(sizes, TOKENS, k, routing, torch.float32, CPU)
        dy = torch.randn_like(mixture.x)
        backends = ("loop", "grouped_mm", "cpp", "auto")
        made = {name: (call, leaves) for name, call, leaves in providers(sizes, mixture, backends)}
        made = {name: made[name] for name in ("dense", *backends)}
        if routing == "balanced":
            made["products"] = partial(products, mixture), (mixture.x, *mixture.weights[::2])
        for mode in MODES:
            calls = {}
            for name, (call, leaves) in made.items():
                inference = torch.inference_mode()(call)
                calls[name] = inference if mode == MODES[0] else forward_backward(call, leaves, dy)
            what = {"d_model": sizes.d_model, "k": k, "routing": routing, "mode": mode}
            session.compare(calls, section="experts", **what)
            yield


def products(mixture: Case) -> Tensor:
    """The products of the experts and nothing else: as many rows as balanced routing gives each, from anywhere."""
    w1, _, w2, _ = mixture.weights
    rows = mixture.x.repeat(mixture.k, 1).unflatten(0, (len(w1), -1)).unbind(0)
    outputs = [F.linear(F.linear(x, u), v) for x, u, v in zip(rows, w1.unbind(0), w2.unbind(0), strict=True)]
    return torch.cat(outputs).unflatten(0, (mixture.k, -1))[0]


def dynamic_experts(session: Session) -> Iterator[None]:
    """Layers that execute some of their neurons, beside the dense layer that executes all."""
    d, f = SIZES.d_model, SIZES.d_inner
    grid = [(TOKENS, size, share) for size in (6, 16, 32, 128) for share in (0.05, 0.1, 0.25, 0.5)]
    for tokens, size, share in [*grid, *((tokens, 16, 0.05) for tokens in (1, 8, 64))]:
        n = f // size
        generator = torch.Generator().manual_seed(size)
        shapes = (tokens, d), (n * size, d), (n * size,), (n * size, d), (d,)
        x, w1, b1, w2, b2 = (torch.randn(shape, generator=generator) / d**0.5 for shape in shapes)
        best = torch.rand(tokens, n, generator=generator).argsort(dim=1)
        mask = best < max(1, round(share * n))
        v = w2.t().contiguous()
        calls = {"dense": lambda x=x, w1=w1, b1=b1, v=v, b2=b2: F.linear(F.linear(x, w1, b1).relu_(), v, b2)}
        for name in ("masked_dense", "loop", "rows", "cpp"):
            if unsupported(name, CPU, torch.float32, d, n * size) is None and (name != "rows" or tokens <= 8):
                calls[name] = partial(dynamic_ffn, x, w1, b1, w2, b2, mask, name)
        calls["auto"] = partial(dynamic_ffn, x, w1, b1, w2, b2, mask)
        calls = {name: torch.inference_mode()(repeated(call, 50 if tokens <= 8 else 1)) for name, call in calls.items()}
        session.compare(calls, section="dynamic", tokens=tokens, size=size, share=share)
        yield


def repeated(call: Callable[[], object], times: int) -> Callable[[], None]:
    """Calls of microseconds are timed many at once."""

    def run() -> None:
        for _ in range(times):
            call()

    return run


def show(session: Session) -> None:
    """Ratios to the dense layer, with the bars where there are any."""
    columns = ("products", "loop", "grouped_mm", "cpp", "auto")
    for mode in MODES:
        lines = []
        for what in unique(session, "experts", "d_model", "k", "routing"):
            row = {r["provider"]: r for r in session.find(section="experts", mode=mode, **what)}
            bar = (
                EXPERT_BARS[what["k"], mode]
                if (what["d_model"], what["routing"]) == (SIZES.d_model, "balanced")
                else None
            )
            name = f"d {what['d_model']} top-{what['k']} {what['routing']}"
            lines.append([name, f"{row['dense']['median_ms']:.1f}", *cells(row, columns), *verdict(row["auto"], bar)])
        table(f"Experts, {mode}: time over the dense layer's", ["", "dense ms", *columns, "bar", ""], lines)
    columns = ("masked_dense", "loop", "rows", "cpp", "auto")
    lines = []
    for what in unique(session, "dynamic", "tokens", "size", "share"):
        row = {r["provider"]: r for r in session.find(section="dynamic", **what)}
        name = f"{what['tokens']} tokens, size {what['size']}, {100 * what['share']:.0f} %"
        lines.append([name, *cells(row, columns), *verdict(row["auto"], DYNAMIC_BARS.get(tuple(what.values())))])
    table("Some of the neurons: time over the dense layer's", ["", *columns, "bar", ""], lines)
    print(f"\n{NOTES}")


def unique(session: Session, section: str, *keys: str) -> list[dict]:
    """The different comparisons of a section, in order."""
    found = dict.fromkeys(tuple(row[key] for key in keys) for row in session.find(section=section))
    return [dict(zip(keys, values, strict=True)) for values in found]


def cells(row: dict[str, dict], columns: tuple[str, ...]) -> list[str]:
    return [f"{row[name]['ratio']:.2f}" if name in row else "-" for name in columns]


def verdict(row: dict, bar: float | None) -> list[str]:
    return [] if bar is None else [f"{bar:.2f}", "reached" if row["ratio"] <= bar else "MISSED"]


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--threads", type=positive, default=torch.get_num_threads(), help="default: %(default)s")
    parser.add_argument("--rounds", type=positive, default=25, help="calls of every candidate (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=6.0, help="most seconds a comparison (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    set_up_process()
    name = device_name(CPU)
    print(f"{name}, {torch.backends.cpu.get_cpu_capability()}, {options.threads} threads, torch {torch.__version__}")
    session = Session(options.rounds, options.seconds)
    with Progress(16 + 19, "benchmarks") as bar:
        for section in (experts, dynamic_experts):
            for _ in section(session):
                bar.advance()
    show(session)
    content = {"threads": options.threads, "capability": torch.backends.cpu.get_cpu_capability()}
    bars = [{"k": k, "mode": mode, "bar": bar} for (k, mode), bar in EXPERT_BARS.items()]
    bars += [{"tokens": t, "size": s, "share": share, "bar": bar} for (t, s, share), bar in DYNAMIC_BARS.items()]
    write_results(options.results, name, {**content, "bars": bars, "notes": NOTES.splitlines(), "rows": session.rows})


if __name__ == "__main__":
    start(main)
