"""Timing several computations against each other on one device.

A machine's speed drifts: clocks change, other processes come and go.  So the candidates are measured alternately, in
rounds of one call each, in a new random order every round.  Comparisons are made within a round.  The reported speed of
a network is measured at several places in memory (``measure_placed``).
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import pandas as pd
import torch

from planer.progress import Progress

PLACEMENTS = 3
"""Copies of what is measured, in other places of memory, over which ``measure_placed`` spreads a measurement."""

MIN_ROUNDS = 3
"""Least number of rounds, even after max_seconds: the fewest whose median is not one of the extremes."""

WARMUP_SHARE = 0.1
"""Share of max_seconds after which no further warm-up round starts.  At least one is made when warmup is above 0."""


def measure(
    callables: Mapping[str, Callable[[], object]],
    rounds: int,
    warmup: int,
    seed: int,
    max_seconds: float,
    device: torch.device,
    description: str = "measuring",
) -> pd.DataFrame:
    """Call every callable once a round and time it.

    rounds: fewer after max_seconds (warm-up included), but at least MIN_ROUNDS.
    warmup: untimed rounds at the start.  seed: of the order within rounds.  On CUDA a call starts on an idle device
    and ends with its last kernel, so the time to launch kernels counts where it is longer than their work.  Caches are
    in the state that the call before, of another candidate, left.
    Returns one row per call, in the order of the calls: name, round, ms.
    """
    order = np.random.default_rng(seed)
    names = list(callables)
    clock = _cuda_ms if device.type == "cuda" else _cpu_ms
    rows: list[tuple[str, int, float]] = []
    began = time.perf_counter()
    collecting = gc.isenabled()
    gc.disable()  # a collection during a call would count as its time
    try:
        for done in range(warmup):
            if done and time.perf_counter() - began > WARMUP_SHARE * max_seconds:
                break
            for name in names:
                clock(callables[name], device)
        with Progress(rounds, description) as bar:
            for number in range(rounds):
                if number >= MIN_ROUNDS and time.perf_counter() - began > max_seconds:
                    break
                for index in order.permutation(len(names)):
                    rows.append((names[index], number, clock(callables[names[index]], device)))
                bar.advance()
    finally:
        if collecting:
            gc.enable()
    return pd.DataFrame(rows, columns=["name", "round", "ms"])


def measure_placed(
    build: Callable[[int], Mapping[str, Callable[[], object]]],
    rounds: int,
    warmup: int,
    seed: int,
    max_seconds: float,
    device: torch.device,
    description: str = "measuring",
) -> pd.DataFrame:
    """``measure`` callables that are built PLACEMENTS times; rounds and seconds are divided among the builds.

    The place of weights and buffers in memory makes a call a percent faster or slower.  More rounds do not average this
    out (Mytkowicz et al., ASPLOS 2009, doi 10.1145/1508244.1508275).

    build: from 0, 1, ... to callables of the same names, in new memory.
    Returns rows like ``measure``, with rounds numbered over all builds.
    """
    kept, samples = [], []  # kept alive, so that the next build gets other memory
    gc.collect()  # networks of earlier measurements free theirs
    each = -(-rounds // PLACEMENTS)
    for number in range(PLACEMENTS):
        kept.append(build(number))
        seconds, label = max_seconds / PLACEMENTS, f"{description}, {number + 1} of {PLACEMENTS}"
        found = measure(kept[-1], each, warmup, seed + number, seconds, device, label)
        samples.append(found.assign(round=found["round"] + number * each))
    return pd.concat(samples, ignore_index=True)


def by_round(samples: pd.DataFrame) -> pd.DataFrame:
    """The result of ``measure`` as a table of ms: a row per round, a column per name."""
    return samples.pivot(index="round", columns="name", values="ms")


def summary(ms: Iterable[float]) -> dict[str, float | int]:
    """median_ms, p10_ms, p90_ms and n of some timings."""
    ms = np.asarray(list(ms), dtype=np.float64)
    p10, median, p90 = np.percentile(ms, (10, 50, 90))
    return {"median_ms": float(median), "p10_ms": float(p10), "p90_ms": float(p90), "n": len(ms)}


def _cpu_ms(call: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


def _cuda_ms(call: Callable[[], object], device: torch.device) -> float:
    with torch.cuda.device(device):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
    return start.elapsed_time(end)
