"""Measure which backend is the fastest and write the tables that ``auto`` reads: python -m planer.kernels.tune

Backends are timed in turn, round after round, so that other work on the machine slows all of them alike.  A table is
part of the code: stages whose code reaches the kernels run again after it has changed, so tune before the experiments.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from planer.errors import UserError
from planer.files import replacing
from planer.kernels import choice, dynamic_ffn, expert_ffn, neuron_threshold
from planer.kernels.activations import activate
from planer.kernels.routing import top_k
from planer.measure import MIN_ROUNDS, by_round, measure
from planer.progress import progress
from planer.runtime import device_name, resolve_device, set_up_process

EXPERTS = 8
TIE = 0.03
"""Backends so near to the fastest count as equal, and the first of PREFERRED stands before the others."""
PREFERRED = ("triton", "cpp", "fused", "grouped_mm", "loop", "rows", "masked_dense")
SMALL_TOKENS = 16
"""Backends that go token by token are not tried with more tokens."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Case:
    """One row of a table: a kind of call."""

    operation: str
    dtype: str
    mode: str
    tokens: int
    expert_size: int
    share: float

    def calls(self, device: torch.device) -> dict[str, Callable[[], object]]:
        """A call of every backend that can run it."""
        makers = {
            "expert_ffn": self._experts,
            "dynamic_ffn": self._dynamic,
            "neuron_threshold": self._threshold,
        }
        return dict(makers[self.operation](device, getattr(torch, self.dtype), torch.Generator().manual_seed(0)))

    def _experts(self, device, dtype, generator) -> Iterator[tuple[str, Callable[[], object]]]:
        d_model, k = self.expert_size // 4, round(self.share * EXPERTS)
        x, w1, b1, w2, b2 = (
            _draw(shape, device, dtype, generator).requires_grad_(self.mode == "training")
            for shape in (
                (self.tokens, d_model),
                (EXPERTS, self.expert_size, d_model),
                (EXPERTS, self.expert_size),
                (EXPERTS, d_model, self.expert_size),
                (EXPERTS, d_model),
            )
        )
        pairs, _ = top_k(_draw((self.tokens, EXPERTS), device, torch.float32, generator), k)
        grad = torch.ones_like(x)
        for name in ("loop", "grouped_mm", "cpp", "triton"):

            def call(name=name) -> object:
                y = expert_ffn.expert_ffn(x, w1, b1, w2, b2, pairs, backend=name)
                return torch.autograd.grad(y, (x, w1, b1, w2, b2), grad) if self.mode == "training" else y

            if expert_ffn.unsupported(name, device, dtype, d_model, self.expert_size) is None:
                yield name, call

    def _dynamic(self, device, dtype, generator) -> Iterator[tuple[str, Callable[[], object]]]:
        d_model, experts = 512, 2048 // self.expert_size
        neurons = experts * self.expert_size
        shapes = (self.tokens, d_model), (neurons, d_model), (neurons,), (neurons, d_model), (d_model,)
        values = [_draw(shape, device, dtype, generator) for shape in shapes]
        best = torch.rand(self.tokens, experts, generator=generator).argsort(dim=1)
        mask = (best < max(1, round(self.share * experts))).to(device)
        for name in ("masked_dense", "loop", "rows", "cpp", "triton"):
            slow = name == "rows" and self.tokens > SMALL_TOKENS or name == "loop" and device.type == "cuda"
            if not slow and dynamic_ffn.unsupported(name, device, dtype, d_model, neurons) is None:
                yield name, lambda name=name: dynamic_ffn.dynamic_ffn(*values, mask, name)

    def _threshold(self, device, dtype, generator) -> Iterator[tuple[str, Callable[[], object]]]:
        d_model, neurons = 512, 1536
        shapes = (self.tokens, d_model), (2 * neurons, d_model), (neurons, d_model)
        x, w1, w2 = (_draw(shape, device, dtype, generator) for shape in shapes)
        h = activate(x @ (w1 / d_model**0.5).t(), "swiglu")
        limits = h.abs().float().quantile(1 - self.share).expand(neurons)
        arguments = x, w1 / d_model**0.5, None, w2, None, limits, "product"
        for name in ("masked_dense", "fused", "cpp", "triton"):
            if neuron_threshold.unsupported(name, device, dtype) is None:
                yield name, lambda name=name: neuron_threshold.neuron_threshold(*arguments, name, "swiglu")


def cases(device: torch.device) -> list[Case]:
    """All rows of a table."""
    cuda = device.type == "cuda"
    dtypes = ("bfloat16", "float32")
    experts = itertools.product(
        dtypes,
        ("inference", "training"),
        (256, 4096, 12288, 32768) if cuda else (64, 1024, 4096),
        (512, 2048),
        (1 / EXPERTS, 2 / EXPERTS),
    )
    dynamic = itertools.product(
        dtypes,
        ("inference",),
        (1, 256, 4096, 12288) if cuda else (1, 16, 1024),
        (6, 16, 32, 128),
        (0.1,) if cuda else (0.05, 0.1, 0.25, 0.5, 1.0),
    )
    threshold = itertools.product(
        dtypes if cuda else ("float32",),  # where there are several backends
        ("inference",),
        (1, 2, 4, 8, 16, 32, 64, 256),
        (1,),
        (0.125, 0.25, 0.5, 0.75, 1.0),
    )
    kinds = {"expert_ffn": experts, "dynamic_ffn": dynamic, "neuron_threshold": threshold}
    return [Case(operation, *row) for operation, rows in kinds.items() for row in rows]


def running(case: Case, calls: dict[str, Callable[[], object]]) -> dict[str, Callable[[], object]]:
    """The calls that do not raise.  Some GPUs have less shared memory than a Triton kernel takes.

    Raises UserError when all do.
    """
    kept = {}
    for name, call in calls.items():
        try:
            call()
        except Exception as error:  # one backend less is no reason to lose the table
            log.warning("left out: %s of %s: %s: %s", name, case, type(error).__name__, str(error).strip())
        else:
            kept[name] = call
    if not kept:
        raise UserError(f"no backend of {case} runs on this device; the messages above say why")
    return kept


def tuned(case: Case, device: torch.device, rounds: int, seconds: float) -> dict:
    """The case's row: backends from the fastest to the slowest and their medians in ms.

    On CUDA the share of executed experts is not known without waiting for the device, so that rows name none.
    """
    with torch.set_grad_enabled(case.mode == "training"):
        calls = running(case, case.calls(device))
        ms = by_round(measure(calls, rounds, 1, 0, seconds, device)).median().to_dict()
    fastest = min(ms.values())
    order = sorted(ms, key=lambda name: (max(ms[name] / fastest, 1 + TIE), PREFERRED.index(name)))
    kind = {key: value for key, value in vars(case).items() if key != "operation"}
    row = {**kind, "backends": order, "ms": [float(f"{ms[name]:.4g}") for name in order]}
    return {**row, "share": None} if device.type == "cuda" and case.operation == "dynamic_ffn" else row


def write_table(path: Path, head: dict, rows: list[dict]) -> None:
    """A table as JSON, one row a line."""
    lines = ",\n".join(json.dumps(row) for row in rows)
    with replacing(path) as temporary:
        temporary.write_text(f'{json.dumps(head, indent=0)[:-2]},\n"rows": [\n{lines}\n]}}\n')


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m planer.kernels.tune", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<number> (default: auto)")
    parser.add_argument("--output", type=Path, help="folder of the tables (default: the one that auto reads)")
    parser.add_argument("--threads", type=int, help="threads on a CPU (default: as many as PyTorch takes)")
    parser.add_argument("--rounds", type=int, default=9, help="calls of every backend (default: 9)")
    parser.add_argument("--seconds", type=float, default=2.0, help="most seconds a row beyond 3 rounds (default: 2)")
    options = parser.parse_args(arguments)
    if options.rounds < MIN_ROUNDS or (options.threads is not None and options.threads < 1):
        raise UserError(f"--rounds must be at least {MIN_ROUNDS} and --threads at least 1")
    device = resolve_device(options.device)
    set_up_process()
    if options.threads:
        torch.set_num_threads(options.threads)
    name = choice.device_class(device)
    tables: dict[str, list[dict]] = {}
    for case in progress(cases(device), f"tuning {name}"):
        tables.setdefault(case.operation, []).append(tuned(case, device, options.rounds, options.seconds))
    head = {"device": name, "measured": True, "measured_on": device_name(device), "torch": torch.__version__}
    if device.type == "cpu":
        head["threads"] = torch.get_num_threads()
    for operation, rows in tables.items():
        path = choice.table_path(operation, name)
        path = options.output / path.relative_to(choice.FOLDER) if options.output else path
        write_table(path, head, rows)
        print(path)


def _draw(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator).to(device, dtype)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(f"tune: {error}") from None
