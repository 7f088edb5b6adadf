"""Measuring the latency table: the marginal cost of every block in a stack of its kind.

A block's cost is the time of a network of 2N copies minus that of N copies, over N.  The embedding, launching and all
other costs that occur once cancel.  Each copy has separate weights and a separate memory, as in a real network.  Stacks
are measured alternately (``measure``), and a cost is the median over rounds of the difference within a round.  A
negative cost is measured again, never set to zero.

Mixtures of experts are measured under three routings (``planer.latency.routings``), but when they decode: a token has
no loads to balance.  Everything is measured for every requested batch size and execution mode, each of which may take
max_seconds.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import NamedTuple

import pandas as pd

from planer.config import ATTENTIONS, Workload
from planer.errors import UserError
from planer.latency.execution import check_execution
from planer.latency.networks import Pool, affordable_copies
from planer.latency.options import measured_options
from planer.latency.routings import ROUTINGS
from planer.latency.table import LatencyTable, free_options, identity
from planer.measure import MIN_ROUNDS, by_round, measure, summary
from planer.runtime import Runtime
from planer.specs import EMBEDDING_AND_HEAD, BlockSpec, FeedForward

ATTEMPTS = 6
"""Most measurements of an option with a negative cost, each with twice the rounds of the one before."""

CONTROL_ROUNDS = 15
"""Calls of the control stack at the start and at the end; the ratio of their medians is the drift."""

CONTROL_SHARE = 0.05
"""Share of max_seconds for each of the two."""


def profile_blocks(config: SimpleNamespace, vocab_size: int, runtime: Runtime) -> LatencyTable:
    """Measure embedding and head, and every option of the design space and of the patterns, on the device at hand.

    config: an experiment; the sections that describe network, workload and profile are read.
    Raises UserError when the device is too noisy for a positive cost, or lacks an execution mode.
    """
    workloads = measured_workloads(config)
    for workload in workloads:
        check_execution(workload.execution, runtime.device)
    rows, notes = [], []
    for workload in workloads:
        found, note = _profile(config, workload, vocab_size, runtime)
        setting = {"batch": workload.batch, "execution": workload.execution}
        lengths = {"tgt_len": workload.tgt_len, "mem_len": workload.mem_len}
        rows += [lengths | setting | row for row in found]
        notes.append(setting | note)
    sides = identity(runtime, config.workload, config.model, vocab_size)
    shared = {key: sides[key] for key in ("device", "dtype")}
    return LatencyTable(pd.DataFrame([shared | row for row in rows]), sides, notes[0] | {"others": notes[1:]})


def measured_workloads(config: SimpleNamespace) -> list[Workload]:
    """The target's workload first.  Segments also have other batch sizes and execution modes."""
    segment, profile = config.workload.of("segment"), config.profile_blocks
    segments = [
        dataclasses.replace(segment, batch=batch, execution=execution)
        for execution in dict.fromkeys((segment.execution, *profile.executions))
        for batch in dict.fromkeys((segment.batch, *profile.batches))
    ]
    return list(dict.fromkeys((config.workload.target, *segments, *config.workload.measured)))


def _profile(config: SimpleNamespace, workload: Workload, vocab_size: int, runtime: Runtime) -> tuple[list[dict], dict]:
    """Table rows for one workload, and notes on how they were measured."""
    began = time.perf_counter()
    profiler = _Profiler(config, workload, vocab_size, runtime)
    before = profiler.control_ms("start")
    costs, fixed, stacks_ms = profiler.costs()
    after = profiler.control_ms("end")
    spread = pd.Series([(cost.quantile(0.9) - cost.quantile(0.1)) / cost.median() for cost in costs.values()])
    return list(_rows(costs, fixed, workload.attentions)), {
        "copies": profiler.copies,
        "rounds": len(fixed),
        "seconds": round(time.perf_counter() - began, 1),
        "stacks_ms": stacks_ms,
        "control_drift": after / before - 1,
        "spread": float(spread.median()),
    }


class _Stack(NamedTuple):
    """A block to repeat, under one attention mode and one routing."""

    spec: BlockSpec
    attention: str
    routing: str

    def named(self, count: int) -> str:
        routing = "" if self.routing == "balanced" else f", {self.routing}"
        return f"{self.spec.name}, {self.attention}{routing}, {count} copies"

    def serves(self, attention: str) -> bool:
        """Whether its times hold for an attention mode; blocks without attention are measured once for both."""
        return self.attention == attention or not self.spec.remembers


class _Profiler:
    """The stacks of one experiment under one workload, and their timings.

    ``copies`` is N: profile_blocks.copies, or less where stacks of 2N of every option would not fit into memory
    (POOL_BYTES), or where a warm-up and MIN_ROUNDS rounds of them would take longer than max_seconds.
    """

    def __init__(self, config: SimpleNamespace, workload: Workload, vocab_size: int, runtime: Runtime):
        self.profile, self.runtime = config.profile_blocks, runtime
        self.model, self.attentions = config.model, workload.attentions
        routings = ROUTINGS[:1] if workload.decodes else ROUTINGS
        specs = measured_options(config)
        # The two modes differ in attention alone.
        self.stacks = [
            _Stack(spec, attention, routing)
            for spec in specs
            for attention in (self.attentions if spec.remembers else self.attentions[:1])
            for routing in (routings if spec.routes else routings[:1])
        ]
        architecture = config.model.architecture(vocab_size, ())
        affordable = affordable_copies(architecture, specs, workload, runtime.dtype, self.attentions) // 2
        self.copies = max(1, min(self.profile.copies, affordable))
        counts = dict.fromkeys(specs, 2 * self.copies)
        self.pool = Pool(architecture, counts, workload, runtime.derived("profile", "weights"), self.attentions)
        single_ms = self._time(self._networks(self.stacks, 1), 2, "pilot", warmup=1).min().sum()
        rounds = self.profile.max_seconds * 1e3 / (3 * single_ms)
        self.copies = max(1, min(self.copies, int(rounds / (MIN_ROUNDS + 1))))

    def costs(self) -> tuple[dict[_Stack, pd.Series], pd.Series, dict[str, dict[str, float]]]:
        """Cost in ms of one block, by stack and round; time in ms of embedding and head, by round; and time in ms of N
        copies under balanced routing, by attention mode and option."""
        fixed = {EMBEDDING_AND_HEAD: self.pool.network((), ATTENTIONS[0])}
        samples = self._time(self._pairs(self.stacks) | fixed, self.profile.rounds, "blocks")
        costs = {stack: self._differences(samples, stack) for stack in self.stacks}
        copies_ms = {stack: float(samples[stack.named(self.copies)].median()) for stack in self.stacks}
        stacks_ms = {
            attention: {
                stack.spec.name: ms
                for stack, ms in copies_ms.items()
                if stack.serves(attention) and stack.routing == ROUTINGS[0]
            }
            for attention in self.attentions
        }
        for attempt in range(1, ATTEMPTS):
            negative = [stack for stack in self.stacks if costs[stack].median() <= 0]
            if not negative:
                break
            again = self._time(self._pairs(negative), self.profile.rounds * 2**attempt, f"negative costs, {attempt}")
            costs |= {stack: self._differences(again, stack) for stack in negative}
        for stack, cost in costs.items():
            if cost.median() <= 0:
                raise UserError(
                    f"profile_blocks: {stack.spec.name} with {stack.attention} attention costs {cost.median():.4g} ms "
                    f"after {ATTEMPTS} measurements, so the device is too busy; free it, or raise profile_blocks.copies"
                )
        return costs, samples[EMBEDDING_AND_HEAD], stacks_ms

    def control_ms(self, when: str) -> float:
        """Time in ms of the control stack; it is measured at the start and at the end."""
        network = self.pool.network((FeedForward(self.model.d_inner),) * self.copies, ATTENTIONS[0], head=False)
        seconds = CONTROL_SHARE * self.profile.max_seconds
        return float(self._time({"control": network}, CONTROL_ROUNDS, f"control, {when}", seconds)["control"].median())

    def _time(
        self,
        networks: dict[str, Callable],
        rounds: int,
        label: str,
        seconds: float | None = None,
        warmup: int | None = None,
    ) -> pd.DataFrame:
        seconds = self.profile.max_seconds if seconds is None else seconds
        warmup = self.profile.warmup if warmup is None else warmup
        seed = self.runtime.derive("profile", label)
        return by_round(measure(networks, rounds, warmup, seed, seconds, self.runtime.device, f"profile: {label}"))

    def _pairs(self, stacks: list[_Stack]) -> dict[str, Callable]:
        return self._networks(stacks, self.copies) | self._networks(stacks, 2 * self.copies)

    def _networks(self, stacks: list[_Stack], count: int) -> dict[str, Callable]:
        """Networks of count equal blocks, without the head, whose noise can exceed their time."""
        return {
            stack.named(count): self.pool.network((stack.spec,) * count, stack.attention, False, stack.routing)
            for stack in stacks
        }

    def _differences(self, samples: pd.DataFrame, stack: _Stack) -> pd.Series:
        double, single = samples[stack.named(2 * self.copies)], samples[stack.named(self.copies)]
        return (double - single) / self.copies


def _rows(costs: dict[_Stack, pd.Series], fixed: pd.Series, attentions: Iterable[str]) -> Iterator[dict]:
    """Table rows for these attention modes: embedding and head, skip, and every option."""
    for attention in attentions:
        setting = {"attention": attention, "routing": ROUTINGS[0]}
        yield {"option": EMBEDDING_AND_HEAD, **setting, **summary(fixed)}
        for option in free_options():
            yield {"option": option, **setting, **summary([0.0] * len(fixed))}
        for stack, cost in costs.items():
            if stack.serves(attention):
                yield {"option": stack.spec.name, **setting, "routing": stack.routing, **summary(cost)}
