"""How threads should wait for each other: python benchmarks/waiting.py; three minutes on 2 cores.

PyTorch's threads meet at the end of every operation.  By default libgomp lets those that arrive first spin for
milliseconds.  That is fast while every thread has a core, and keeps the last thread from its core otherwise.  With
OMP_WAIT_POLICY=PASSIVE threads sleep at once, and each waking costs time.  The jobs of the workflow spin briefly before
they sleep (planer/workflow/environment.py).  libgomp reads the policy when it is loaded: every policy runs in processes
that are started with it.
Steps of training and forward passes of networks of the experiment demo are timed in turn under each policy, alone and
beside other loads; ratios are medians over rounds of the ratio to spinning.
Results go to benchmarks/results/<processor>-waiting-<date>.json and, as a table, to standard output.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch

from benchmarks.output import command_line, positive, shipped_experiment, start, table, write_results
from planer.data.texts import Texts
from planer.latency.networks import random_model, timed_forward
from planer.measure import summary
from planer.progress import Progress
from planer.runtime import Runtime, device_name, reproducible, resolve_device, set_up_process
from planer.tasks.causal_lm import CausalLM
from planer.training.loss import StepLoss
from planer.training.optimizer import make_optimizer
from planer.training.terms import Balance
from planer.workflow.environment import SPINS

POLICIES = {"spin": {}, "brief": {"GOMP_SPINCOUNT": SPINS}, "passive": {"OMP_WAIT_POLICY": "PASSIVE"}}
"""Environment by name: libgomp's default, the workflow's, and no spinning."""
LOADS = {
    "none": (False, False),
    "two Python loops": (True, False),
    "a training": (False, True),
    "both": (True, True),
}
"""Whether loops and another training run meanwhile, by name."""
TASKS = ("train", "measure")
PATTERN = "(sf)x2(sm2)x2"


class Worker:
    """A process with a training and a network to measure, under one policy."""

    def __init__(self, environment: dict[str, str], threads: int):
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--worker", str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=inherited | environment,
        )
        self._answer()  # ready

    def times(self, task: str, seconds: float) -> list[float]:
        """Milliseconds of each call of a task; as many as begin within these seconds, and at least one."""
        self._ask(task, seconds)
        return self._answer()

    @contextmanager
    def training(self) -> Iterator[None]:
        """Train for as long as the block lasts."""
        self._ask("load", 0)
        yield
        self._ask("", 0)
        self._answer()

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()

    def _ask(self, task: str, seconds: float) -> None:
        print(json.dumps([task, seconds]), file=self._process.stdin, flush=True)

    def _answer(self) -> list[float]:
        return json.loads(self._process.stdout.readline())


@contextmanager
def python_loops() -> Iterator[None]:
    """Two processes that keep a core busy each."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def compared(
    workers: dict[str, Worker], others: dict[str, Worker], rounds: int, seconds: float, bar: Progress
) -> Iterator[dict]:
    """A row per load, task and policy.  others: the trainings that are the load, under the same policies."""
    for load, (loops, training) in LOADS.items():
        found: dict[tuple[str, str], list[list[float]]] = {(task, name): [] for task in TASKS for name in workers}
        for number in range(rounds):
            names = list(workers) if number % 2 else list(workers)[::-1]
            for name in names:
                with ExitStack() as stack:
                    if loops:
                        stack.enter_context(python_loops())
                    if training:
                        stack.enter_context(others[name].training())
                    for task in TASKS:
                        found[task, name].append(workers[name].times(task, seconds))
                bar.advance()
        for task in TASKS:
            spin = [statistics.median(ms) for ms in found[task, "spin"]]
            for name in workers:
                medians = [statistics.median(ms) for ms in found[task, name]]
                ratio = statistics.median(mine / other for mine, other in zip(medians, spin, strict=True))
                calls = [ms for part in found[task, name] for ms in part]
                row = {"load": load, "task": task, "policy": name}
                yield row | summary(calls) | {"max_ms": max(calls), "ratio": ratio}


def work(threads: int) -> None:
    """The worker's side: a JSON line with a task and seconds in, one with milliseconds of its calls out."""
    calls = prepared_calls(threads)
    for call in calls.values():
        call()
    print("[]", flush=True)
    for line in sys.stdin:
        task, seconds = json.loads(line)
        if task == "load":
            while not select.select([sys.stdin], [], [], 0)[0]:
                calls["train"]()
            print("[]", flush=True)
        elif task:
            print(json.dumps(timed(calls[task], seconds)), flush=True)


def timed(call: Callable[[], object], seconds: float) -> list[float]:
    """Milliseconds of calls, one after the other, until so many seconds have passed."""
    began, ms = time.perf_counter(), []
    while not ms or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        call()
        ms.append((time.perf_counter() - start) * 1e3)
    return ms


def prepared_calls(threads: int) -> dict[str, Callable[[], object]]:
    """A step of training and a forward pass of a network of the demo's size, on random tokens."""
    config = shipped_experiment("demo")
    torch.set_num_threads(threads)
    set_up_process()
    runtime = Runtime()
    network = config.model.architecture(256, PATTERN)
    tokens = np.random.default_rng(0).integers(256, size=100_000, dtype=np.uint8)
    model = random_model(network, runtime).train()
    step_loss = StepLoss(model, CausalLM(Texts(256, tokens), config.retrain, runtime), [Balance(0.01)], runtime)
    optimizer = make_optimizer(model.parameters(), config.retrain.optimizer)

    def train() -> None:
        with reproducible(runtime.device):
            optimizer.zero_grad(set_to_none=True)
            loss, _ = step_loss(0)
            loss.backward()
            optimizer.step()

    return {"train": train, "measure": timed_forward(network, config.workload, runtime, "cached")}


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--threads", type=positive, default=2, help="default: %(default)s")
    parser.add_argument("--rounds", type=positive, default=8, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=0.5, help="of each task and round (default: %(default)s)")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return work(options.worker)
    workers, others = (
        {name: Worker(environment, options.threads) for name, environment in POLICIES.items()} for _ in range(2)
    )
    with Progress(len(LOADS) * options.rounds * len(POLICIES), "waiting") as bar:
        rows = list(compared(workers, others, options.rounds, options.seconds, bar))
    for worker in (*workers.values(), *others.values()):
        worker.close()
    numbers = ("median_ms", "p10_ms", "p90_ms", "max_ms")
    lines = [
        [row["task"], row["load"], row["policy"], *(f"{row[name]:.1f}" for name in numbers), f"{row['ratio']:.2f}"]
        for row in rows
    ]
    head = ["task", "beside", "waiting", "median ms", "10 %", "90 %", "longest", "ratio"]
    table(f"{PATTERN}, {options.threads} threads on {os.cpu_count()} cores", head, lines)
    content = {"threads": options.threads, "cores": os.cpu_count(), "pattern": PATTERN, "rows": rows}
    write_results(options.results, device_name(resolve_device("cpu")), content, "-waiting")


if __name__ == "__main__":
    start(main)
