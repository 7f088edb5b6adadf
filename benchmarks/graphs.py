"""Timing calls on a GPU: replayed as CUDA graphs where they can be, in turn, and with cold caches."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

CACHE_BYTES = 2**28
"""Written over before every timed call: more than any L2 holds."""


@dataclass
class Candidate:
    """Something to time.  graphed: replayed as a CUDA graph; otherwise its launches are part of the time."""

    call: Callable[[], object]
    graphed: bool = False


def candidate(call: Callable[[], object], device: torch.device, capture: bool = True) -> Candidate:
    """The call, warmed up and on CUDA captured as a graph.

    What waits for the device, as a loop over experts does for their loads, cannot be captured and stays as it is.
    """
    if device.type != "cuda":
        call()
        return Candidate(call)
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    if not capture or _waits(call):
        return Candidate(call)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = call()
    torch.cuda.synchronize()

    def replay(kept=kept):  # the graph writes to what the call returned
        graph.replay()

    return Candidate(replay, graphed=True)


def _waits(call: Callable[[], object]) -> bool:
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        return True
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()
    return False


def interleaved(candidates: dict[str, Candidate], rounds: int, device: torch.device) -> dict[str, np.ndarray]:
    """Microseconds of every call, [rounds] each: in every round each candidate once, in a random order."""
    order = np.random.default_rng(0)
    names = list(candidates)
    clock = _cuda_us if device.type == "cuda" else _cpu_us
    samples = {name: np.empty(rounds) for name in names}
    for number in range(rounds + 1):
        for index in order.permutation(len(names)):
            us = clock(candidates[names[index]].call)
            if number:
                samples[names[index]][number - 1] = us
    return samples


def _cpu_us(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e6


def _cuda_us(call: Callable[[], object]) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    _cache().zero_()
    start.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) * 1e3


def _cache(kept=[]) -> torch.Tensor:  # noqa: B006
    if not kept:
        kept.append(torch.empty(CACHE_BYTES, dtype=torch.int8, device="cuda"))
    return kept[0]
