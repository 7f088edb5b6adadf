"""Limits of a chosen network: its latency by the table, and the others of the configuration.

A network's cost is the sum over its blocks, so each limit is one linear constraint of the integer program.  Limits are
shares of the baseline's cost.  Costs are whole numbers: latencies are rounded to picoseconds here, once, and FLOPs are
those of a whole forward pass.  Their sums are exact, so the baseline always keeps a limit of 1.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from numbers import Integral
from types import SimpleNamespace

from planer.config import Workload, calls_of_limit
from planer.errors import UserError
from planer.latency.table import LatencyTable
from planer.specs import EMBEDDING_AND_HEAD, Architecture, BlockSpec

BYTES = 4
"""Of a weight or a remembered number: fp32."""

PICOSECONDS = 10**9
"""Per ms.  Far below what can be measured, and an hour of them is still exact in a float."""


@dataclass(frozen=True)
class Limit:
    """One limit of a network: fixed + the costs of its options <= budget.

    Raises ValueError for costs that are no whole numbers.
    """

    name: str
    """Name in messages: ``target`` for the latency, else ``params``, ``flops``, ..."""
    costs: Sequence[int]
    """Of each option [N], the same at every position."""
    fixed: int
    """Cost of every network without its blocks."""
    budget: int
    """For the whole network."""
    baseline: int
    """Cost of the baseline; limits are shares of it."""
    unit: str
    """Unit in messages."""
    per_unit: int = 1
    """One unit in these numbers."""
    floor: int | None = None
    """Least cost of a network, where the budget has to be used."""

    def __post_init__(self):
        if not all(isinstance(cost, Integral) for cost in (*self.costs, self.fixed, self.budget, self.baseline)):
            raise ValueError(f"costs, budget and baseline of {self.name} must be whole numbers")

    def at(self, share: float) -> Limit:
        """The limit at another share of the baseline's cost, rounded down; the share counts as printed."""
        return dataclasses.replace(self, budget=math.floor(Fraction(str(share)) * self.baseline))

    def of(self, chosen: Sequence[int]) -> int:
        """Cost of a network."""
        return self.fixed + sum(self.costs[option] for option in chosen)

    def require_reachable(self, positions: int) -> None:
        """Raise UserError, naming the reachable range, when no network of this length keeps the limit."""
        if self.budget < self.fixed + positions * min(self.costs):
            raise UserError(
                f"{self.name} {self.share:.4g} cannot be met: reachable range is {self.range(positions)} of the "
                f"baseline's {self.baseline / self.per_unit:.4g} {self.unit}; choose a {self.name} in that range"
            )

    @property
    def share(self) -> float:
        """The budget as a share of the baseline's cost."""
        return self.budget / self.baseline

    def range(self, positions: int) -> str:
        """The reachable shares of the baseline's cost, for messages."""
        low, high = (self.fixed + positions * pick(self.costs) for pick in (min, max))
        lowest = math.ceil(100 * Fraction(low, self.baseline)) / 100  # rounded up, so that the number can be reached
        return f"{lowest:.2f} to {high / self.baseline:.2f}"


def latency_limit(name: str, share: float, costs: Sequence[float], fixed: float, baseline: Sequence[float]) -> Limit:
    """A limit from latencies in ms: of each option, of embedding and head, and of the baseline's blocks."""
    whole, *blocks = (round(ms * PICOSECONDS) for ms in (fixed, *baseline))
    total = whole + sum(blocks)
    return Limit(name, [round(ms * PICOSECONDS) for ms in costs], whole, total, total, "ms", PICOSECONDS).at(share)


def limits_of(
    config: SimpleNamespace, baseline: Architecture, table: LatencyTable, target: float, **extra_limits: float
) -> list[Limit]:
    """The latency limit, called ``target``, and ``extra_limits``: params, active_params, flops, memory (shares).

    Names that begin with latency_ in ``extra_limits`` limit the latency of other calls.  config has the sections model,
    design_space and workload.  FLOPs are those of one call of the target's workload; memory is weights and the memory
    of its batch, in bytes.  Raises UserError when the table lacks an option or a batch size.
    """
    blocks = [config.model.option(name) for name in config.design_space]

    def latency(name: str, share: float, calls: Workload) -> Limit:
        how = calls.attention, calls.batch, calls.execution
        table.estimate(baseline, *how)  # raises where the table was measured for other shapes
        names = (config.design_space, [block.name for block in baseline.blocks])
        costs, whole = ([table.lookup(block, *how) for block in blocks] for blocks in names)
        return latency_limit(name, share, costs, table.lookup(EMBEDDING_AND_HEAD, *how), whole)

    workload, empty = config.workload.target, config.model.architecture(baseline.vocab_size, ())
    cost, tokens = _costs(config, baseline), workload.batch * workload.tgt_len
    fixed = {
        "params": empty.params(),
        "active_params": empty.active_params(),
        "flops": round(tokens * empty.flops(1, 1, 0, workload.attention)),
        "memory": BYTES * empty.params(),
    }
    units = {
        "params": ("parameters", 1),
        "active_params": ("parameters", 1),
        "flops": ("FLOPs per token", tokens),
        "memory": ("bytes", 1),
    }
    limits = [latency("target", target, workload)]
    for name, share in extra_limits.items():
        if (calls := calls_of_limit(name, config.workload)) is not None:
            limits.append(latency(name, share, calls))
            continue
        whole = fixed[name] + sum(cost[name](block) for block in baseline.blocks)
        limit = Limit(name, [cost[name](block) for block in blocks], fixed[name], whole, whole, *units[name])
        limits.append(limit.at(share))
    return limits


def _costs(config: SimpleNamespace, baseline: Architecture) -> dict[str, Callable[[BlockSpec], int]]:
    """Costs of one block, by limit; FLOPs are those of a call of the target's workload."""
    width, work = baseline.d_model, config.workload.target

    def memory(block: BlockSpec) -> int:
        remembered = work.batch * work.mem_len * block.remembered(width, work.attention)
        return BYTES * (block.params(width) + remembered)

    def flops(block: BlockSpec) -> int:
        per_token = block.flops(width, work.batch, work.tgt_len, work.mem_len, work.attention)
        return round(work.batch * work.tgt_len * per_token)

    return {
        "params": lambda block: block.params(width),
        "active_params": lambda block: block.active_params(width),
        "flops": flops,
        "memory": memory,
    }


def used(limits: Sequence[Limit], options: Sequence[int]) -> dict[str, float]:
    """Cost of a network by every limit, as a share of the baseline's."""
    return {limit.name: limit.of(options) / limit.baseline for limit in limits}
