"""Measuring the latency table: the marginal cost of every block in a stack of its kind.

A block's cost is the time of a network of 2N copies minus that of N copies, over N.  Both pay for the embedding, for
launching and for everything else that is paid once, so it cancels; each copy has weights and a memory of its own, as
in a real network.  Stacks are measured in turn (``measure``), and a cost is the median over rounds of the difference
within a round.  A cost that comes out negative is measured again, never set to zero.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pandas as pd
import torch

from planer.architecture import Attention, BlockSpec, FeedForward, Skip, from_notation
from planer.config import ModelConfig, derive_seed
from planer.files import UserError
from planer.latency.measure import MIN_ROUNDS, by_round, measure, summary
from planer.latency.networks import ATTENTIONS, Pool, affordable_copies
from planer.latency.table import LatencyTable, identity
from planer.training.runtime import resolve_device, resolve_dtype

ATTEMPTS = 6
"""Measurements of an option whose cost comes out negative, each of twice the rounds of the one before."""

CONTROL_ROUNDS = 15
"""Calls of the control stack at the start and at the end; the ratio of their medians is the drift."""

CONTROL_SHARE = 0.05
"""Share of max_seconds that either may take."""


def profile_blocks(config: SimpleNamespace, vocab_size: int) -> LatencyTable:
    """Measure the stem and every option of the design space and of the patterns, on the device at hand.

    config: an experiment; the sections that describe network, workload and profile are read.
    Raises UserError when the device is too noisy for a positive cost.
    """
    began = time.perf_counter()
    device = resolve_device(config.device)
    dtype = resolve_dtype(config.dtype, device)
    profiler = _Profiler(config, vocab_size, device, dtype)
    before = profiler.control_ms("start")
    costs, stem = profiler.costs()
    after = profiler.control_ms("end")
    spread = pd.Series([(cost.quantile(0.9) - cost.quantile(0.1)) / cost.median() for cost in costs.values()])
    notes = {
        "copies": profiler.copies,
        "rounds": len(stem),
        "seconds": round(time.perf_counter() - began, 1),
        "control_ms": (before + after) / 2,
        "control_drift": after / before - 1,
        "spread": float(spread.median()),
    }
    sides = identity(device, dtype, config.workload, config.model, vocab_size)
    shared = {key: sides[key] for key in ("device", "dtype", "batch", "tgt_len", "mem_len")} | {"execution": "eager"}
    return LatencyTable(pd.DataFrame([shared | row for row in _rows(costs, stem)]), sides, notes)


def measured_options(config: SimpleNamespace) -> tuple[BlockSpec, ...]:
    """Blocks of all design spaces and of the patterns, and the full-size ones, each once; skip is not among them."""
    model, patterns = config.model, config.patterns
    spaces = (config.design_space, config.arms.isoparam, config.arms.par_search)
    blocks = [model.option(name) for space in spaces for name in space]
    for pattern in (patterns.baseline, patterns.sandwich, patterns.par):
        blocks += from_notation(pattern, model.symbols())
    blocks += [Attention(model.num_heads, model.d_head), FeedForward(model.d_inner)]
    return tuple(block for block in dict.fromkeys(blocks) if not isinstance(block, Skip))


def control(model: ModelConfig, copies: int) -> tuple[BlockSpec, ...]:
    """Blocks of the stack whose time says how fast the device is at the moment."""
    return (FeedForward(model.d_inner),) * copies


class _Profiler:
    """The stacks of one experiment, and their timings.

    ``copies`` is N: profile_blocks.copies, or less where stacks of 2N of every option would not fit into memory
    (POOL_BYTES), or where a warm-up and MIN_ROUNDS rounds of them would take longer than max_seconds.
    """

    def __init__(self, config: SimpleNamespace, vocab_size: int, device: torch.device, dtype: torch.dtype):
        self.profile, self.seed, self.device = config.profile_blocks, config.seed, device
        self.model = config.model
        specs = measured_options(config)
        # Attention costs something else in either mode, all other blocks the same.
        self.stacks = [
            (spec, attention)
            for spec in specs
            for attention in (ATTENTIONS if isinstance(spec, Attention) else ATTENTIONS[:1])
        ]
        architecture = config.model.architecture(vocab_size, ())
        affordable = affordable_copies(architecture, specs, config.workload, dtype) // 2
        self.copies = max(1, min(self.profile.copies, affordable))
        counts = dict.fromkeys(specs, 2 * self.copies)
        seed = derive_seed(self.seed, "profile", "weights")
        self.pool = Pool(architecture, counts, config.workload, device, dtype, seed=seed)
        single_ms = self._time(self._networks(self.stacks, 1), 2, "pilot", warmup=1).min().sum()
        rounds = self.profile.max_seconds * 1e3 / (3 * single_ms)
        self.copies = max(1, min(self.copies, int(rounds / (MIN_ROUNDS + 1))))

    def costs(self) -> tuple[dict[tuple[BlockSpec, str], pd.Series], pd.Series]:
        """Cost in ms of one block, by stack and round; and time in ms of the stem, by round."""
        stem = {"stem": self.pool.network((), ATTENTIONS[0])}
        samples = self._time(self._pairs(self.stacks) | stem, self.profile.rounds, "blocks")
        costs = {stack: self._differences(samples, stack) for stack in self.stacks}
        for attempt in range(1, ATTEMPTS):
            negative = [stack for stack in self.stacks if costs[stack].median() <= 0]
            if not negative:
                return costs, samples["stem"]
            more = self._time(self._pairs(negative), self.profile.rounds * 2**attempt, f"negative costs, {attempt}")
            costs |= {stack: self._differences(more, stack) for stack in negative}
        for (spec, attention), cost in costs.items():
            if cost.median() <= 0:
                raise UserError(
                    f"profile_blocks: {spec.name} with {attention} attention costs {cost.median():.4g} ms after "
                    f"{ATTEMPTS} measurements, so the device is too busy; free it, or raise profile_blocks.copies"
                )
        return costs, samples["stem"]

    def control_ms(self, when: str) -> float:
        """Time in ms of a stack that is measured at the start and at the end."""
        network = self.pool.network(control(self.model, self.copies), ATTENTIONS[0], head=False)
        seconds = CONTROL_SHARE * self.profile.max_seconds
        return float(self._time({"control": network}, CONTROL_ROUNDS, f"control, {when}", seconds)["control"].median())

    def _time(
        self,
        networks: dict[str, Callable],
        rounds: int,
        what: str,
        seconds: float | None = None,
        warmup: int | None = None,
    ) -> pd.DataFrame:
        seconds = self.profile.max_seconds if seconds is None else seconds
        warmup = self.profile.warmup if warmup is None else warmup
        seed = derive_seed(self.seed, "profile", what)
        return by_round(measure(networks, rounds, warmup, seed, seconds, self.device, f"profile: {what}"))

    def _pairs(self, stacks: list[tuple[BlockSpec, str]]) -> dict[str, Callable]:
        return self._networks(stacks, self.copies) | self._networks(stacks, 2 * self.copies)

    def _networks(self, stacks: list[tuple[BlockSpec, str]], count: int) -> dict[str, Callable]:
        """Networks of so many equal blocks; without the head, whose noise would drown them in a large vocabulary."""
        return {_name(stack, count): self.pool.network((stack[0],) * count, stack[1], head=False) for stack in stacks}

    def _differences(self, samples: pd.DataFrame, stack: tuple[BlockSpec, str]) -> pd.Series:
        more, fewer = samples[_name(stack, 2 * self.copies)], samples[_name(stack, self.copies)]
        return (more - fewer) / self.copies


def _name(stack: tuple[BlockSpec, str], count: int) -> str:
    return f"{stack[0].name}, {stack[1]}, {count} copies"


def _rows(costs: dict[tuple[BlockSpec, str], pd.Series], stem: pd.Series) -> Iterator[dict]:
    """Table rows for both attention modes: stem, skip, and every option."""
    for attention in ATTENTIONS:
        yield {"option": "stem", "attention": attention, **summary(stem)}
        yield {"option": Skip.kind, "attention": attention, **summary([0.0] * len(stem))}
        for (spec, mode), cost in costs.items():
            if mode == attention or not isinstance(spec, Attention):
                yield {"option": spec.name, "attention": attention, **summary(cost)}
