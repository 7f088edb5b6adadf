"""Does the sum of table entries predict the latency of whole networks?

Random networks of the design space, spread evenly over the range of latencies, and the baseline are measured end to
end and compared with their estimates.  Correlation alone is no test: public latency tables reach r = 0.92 to 0.999
with single errors of 5 to 46 % (HAT, 8 pairs of device and task).  So errors are reported too.

A device may have become faster or slower since its table was measured, which does not concern sums.  So the table's
stacks are timed again between the networks, and estimates are scaled by their time now over their time then.  The
factor is reported.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from types import SimpleNamespace

import numpy as np
import pandas as pd

from planer.latency.networks import Pool, affordable_copies
from planer.latency.table import LatencyTable, identity
from planer.measure import MIN_ROUNDS, by_round, measure, summary
from planer.runtime import Runtime
from planer.specs import EMBEDDING_AND_HEAD, Architecture, BlockSpec

IDLE_BAR = {"pearson_r": 0.99, "mape": 0.03, "max_ape": 0.08}
"""Bar for an idle device: r at least, errors at most.  The configuration may set another one."""

MIN_NETWORKS = 8
"""Least number of random networks, even when they take longer than max_seconds."""

RESAMPLES = 2000
"""Bootstrap samples behind the intervals."""


def check_additivity(config: SimpleNamespace, vocab_size: int, table: LatencyTable, runtime: Runtime) -> dict:
    """Measure profile_blocks.networks random networks and the baseline, under the workload's modes.

    Fewer networks are measured, and the report says so, where a warm-up and MIN_ROUNDS rounds of all would take longer
    than profile_blocks.max_seconds.  Returns the content of additivity.json; ``slowdown`` is the estimates' factor.
    Raises UserError when the table was measured on another device or for other shapes.
    """
    table.check(identity(runtime, config.workload, config.model, vocab_size))
    profile, attention = config.profile_blocks, config.workload.target.attention
    then_ms = {name: ms for name, ms in table.notes["stacks_ms"][attention].items() if name in config.design_space}
    networks = _networks(config, vocab_size, table, runtime, sum(then_ms.values()))
    stacks = {name: (config.model.option(name),) * table.notes["copies"] for name in then_ms}
    pool = _pool([*(network.blocks for network in networks.values()), *stacks.values()], config, vocab_size, runtime)
    timed = {name: pool.network(network.blocks, attention) for name, network in networks.items()}
    timed |= {_stacked(name): pool.network(blocks, attention, head=False) for name, blocks in stacks.items()}
    seed = runtime.derive("additivity", "order")
    how = (profile.rounds, profile.warmup, seed, profile.max_seconds, runtime.device)
    samples = by_round(measure(timed, *how, "additivity"))
    slowdown = sum(samples[_stacked(name)].median() for name in stacks) / sum(then_ms.values())
    rows = [
        _row(name, network, slowdown * table.estimate(network, attention), samples[name])
        for name, network in networks.items()
    ]
    estimated, measured = (np.array([row[key] for row in rows]) for key in ("estimated_ms", "measured_ms"))
    result = agreement(estimated, measured)
    bar = {"pearson_r": profile.min_r, "mape": profile.max_mape, "max_ape": profile.max_ape}
    return {
        "attention": attention,
        "execution": config.workload.target.execution,
        "n": len(rows),
        "requested": profile.networks + 1,
        "rounds": len(samples),
        "slowdown": float(slowdown),
        **result,
        "intervals": intervals(estimated, measured, runtime.derive("additivity", "bootstrap")),
        "bar": bar,
        "passed": not missed(result, bar),
        "networks": rows,
    }


def spread_networks(costs: np.ndarray, positions: int, count: int, seed: int) -> list[tuple[int, ...]]:
    """Different random networks whose costs are spread evenly between the cheapest and the dearest possible.

    costs: [N] in ms.  Network k samples every position from P_i ~ exp(lambda c_i), with lambda such that the expected
    cost is the middle of the k-th of count equal parts of the range.  A repeated network is replaced by a sample from a
    distribution closer to uniform.  Returns option numbers; fewer networks than count when no more exist.
    """
    generator = np.random.default_rng(seed)
    unit = (costs - costs.min()) / (np.ptp(costs) or 1.0)
    tilts = np.linspace(-50, 50, 2001)
    weights = np.exp(tilts[:, None] * (unit - (tilts[:, None] > 0)))  # at most 1: nothing overflows
    means = (weights * unit).sum(axis=1) / weights.sum(axis=1)
    networks: dict[tuple[int, ...], None] = {}
    count = min(count, len(costs) ** positions)
    for k in range(count):
        tilt = tilts[np.abs(means - (k + 0.5) / count).argmin()]
        while len(networks) == k:
            probability = np.exp(tilt * unit - max(tilt, 0))
            network = generator.choice(len(costs), size=positions, p=probability / probability.sum())
            networks[tuple(network.tolist())] = None
            tilt *= 0.97
    return list(networks)


def agreement(estimated: np.ndarray, measured: np.ndarray) -> dict[str, float]:
    """Pearson's r, and relative errors of the estimates: mean and largest absolute one, and mean signed one (bias).

    r is 0 where it is not defined, with all estimates or all measurements the same.
    """
    error = estimated / measured - 1
    varied = np.ptp(estimated) and np.ptp(measured)
    return {
        "pearson_r": float(np.corrcoef(estimated, measured)[0, 1]) if varied else 0.0,
        "mape": float(np.abs(error).mean()),
        "max_ape": float(np.abs(error).max()),
        "bias": float(error.mean()),
    }


def missed(result: Mapping[str, float], bar: Mapping[str, float]) -> list[str]:
    """Names of the numbers that miss a bar: a lower pearson_r, or a larger error."""
    return [key for key in bar if (result[key] < bar[key] if key == "pearson_r" else result[key] > bar[key])]


def intervals(estimated: np.ndarray, measured: np.ndarray, seed: int) -> dict[str, list[float]]:
    """95 % percentile-bootstrap intervals of ``agreement``'s means, over networks; a maximum has none."""
    generator = np.random.default_rng(seed)
    samples = []
    while len(samples) < RESAMPLES:
        chosen = generator.integers(len(estimated), size=len(estimated))
        if len(set(chosen.tolist())) > 2:  # the correlation of two points is always 1
            samples.append(agreement(estimated[chosen], measured[chosen]))
    return {
        key: np.percentile([sample[key] for sample in samples], (2.5, 97.5)).tolist()
        for key in ("pearson_r", "mape", "bias")
    }


def _networks(
    config: SimpleNamespace, vocab_size: int, table: LatencyTable, runtime: Runtime, stacks_ms: float
) -> dict[str, Architecture]:
    """The baseline and the random networks, as many as requested or as there is time for beside the stacks."""
    profile, attention = config.profile_blocks, config.workload.target.attention
    baseline = config.model.architecture(vocab_size, config.patterns.baseline)
    positions = len(baseline.blocks)
    costs = np.array([table.lookup(option, attention) for option in config.design_space])
    typical_ms = table.lookup(EMBEDDING_AND_HEAD, attention) + positions * (costs.min() + costs.max()) / 2
    affordable = int((profile.max_seconds * 1e3 / (MIN_ROUNDS + 1) - stacks_ms) / typical_ms)
    count = max(MIN_NETWORKS, min(profile.networks, affordable))
    options = [config.model.option(name) for name in config.design_space]
    choices = spread_networks(costs, positions, count, runtime.derive("additivity", "networks"))
    return {"baseline": baseline} | {
        f"random_{number}": config.model.architecture(vocab_size, tuple(options[option] for option in choice))
        for number, choice in enumerate(choices)
    }


def _pool(networks: list[tuple[BlockSpec, ...]], config: SimpleNamespace, vocab_size: int, runtime: Runtime) -> Pool:
    """Copies of each block: as many as one network needs at most, or as fit into memory."""
    workload = config.workload.target
    attentions = [workload.attention]
    architecture = config.model.architecture(vocab_size, ())
    most: Counter[BlockSpec] = Counter()
    for blocks in networks:
        most |= Counter(blocks)
    affordable = affordable_copies(architecture, most, workload, runtime.dtype, attentions)
    copies = {spec: min(number, affordable) for spec, number in most.items()}
    return Pool(architecture, copies, workload, runtime.derived("additivity", "weights"), attentions)


def _stacked(option: str) -> str:
    """Name of an option's stack among the networks."""
    return f"stack of {option}"


def _row(name: str, network: Architecture, estimated_ms: float, measured_ms: pd.Series) -> dict:
    measured = summary(measured_ms)
    return {
        "name": name,
        "options": [block.name for block in network.blocks],
        "estimated_ms": estimated_ms,
        "measured_ms": measured["median_ms"],
        "p10_ms": measured["p10_ms"],
        "p90_ms": measured["p90_ms"],
        "error": estimated_ms / measured["median_ms"] - 1,
    }
