"""Timing several computations against each other on one device.

A machine's speed drifts: clocks change, other processes come and go.  So the candidates are measured in turn, in
rounds of one call each, in a new random order every round; what is compared is compared within a round.
What is reported as the speed of a network is measured in several places of memory (``measure_placed``).
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import pandas as pd
import torch

from planer.progress import Progress

MIN_ROUNDS = 3
"""Whole rounds measured even when time is up: the fewest that have a median apart from their extremes."""

WARMUP_SHARE = 0.1
"""Share of max_seconds after which no further warm-up round begins; one is always made when any is asked for."""


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

    rounds: stops earlier, but not before MIN_ROUNDS, after a whole round past max_seconds (warm-up included).
    warmup: untimed rounds at the start.  seed: of the order within rounds.  On CUDA a call begins on an idle device
    and ends when its last kernel has, so the time to launch kernels counts where it is the longer one.  Caches are as
    the call before, of another candidate, left them.
    Returns one row per call, in the order of the calls: name, round, ms.
    """
    order = np.random.default_rng(seed)
    names = list(callables)
    clock = _cuda_ms if device.type == "cuda" else _cpu_ms
    rows: list[tuple[str, int, float]] = []
    began = time.perf_counter()
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()  # a collection in the middle of a call would be counted as its time
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
    placements: int,
    rounds: int,
    warmup: int,
    seed: int,
    max_seconds: float,
    device: torch.device,
    description: str = "measuring",
) -> pd.DataFrame:
    """``measure`` callables that are built anew so many times; rounds and seconds are shared out among them.

    Where weights and buffers happen to lie makes a call a percent faster or slower for as long as they lie there, which
    no number of rounds averages out (Mytkowicz et al., ASPLOS 2009, doi 10.1145/1508244.1508275).

    build: from 0, 1, ... to callables of the same names, in memory of their own.
    Returns what ``measure`` does, rounds numbered throughout.
    """
    kept, samples = [], []  # memory that is given back would be given out again, and be no other place
    each = -(-rounds // placements)
    for number in range(placements):
        kept.append(build(number))
        seconds, what = max_seconds / placements, f"{description}, {number + 1} of {placements}"
        found = measure(kept[-1], each, warmup, seed + number, seconds, device, what)
        samples.append(found.assign(round=found["round"] + number * each))
    return pd.concat(samples, ignore_index=True)


def by_round(samples: pd.DataFrame) -> pd.DataFrame:
    """What ``measure`` returned as a table of ms: a row per round, a column per name."""
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
