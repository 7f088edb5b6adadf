"""What a chosen network may cost: its latency by the table, and whatever else the config limits.

All costs add up over blocks, so each is one linear constraint of the integer program.  Limits are shares of what the
baseline costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace

from planer.architecture import Architecture, Attention, BlockSpec
from planer.config import batch_of_limit
from planer.files import UserError
from planer.latency.table import LatencyTable


@dataclass(frozen=True)
class Limit:
    """What a network may cost at most in one currency: fixed + the costs of its options <= budget."""

    name: str
    """What messages call it: ``target`` for the latency, else ``params``, ``flops``, ..."""
    costs: Sequence[float]
    """Of each option [N], the same at every position."""
    fixed: float
    """What every network pays besides its blocks."""
    budget: float
    """For the whole network."""
    baseline: float
    """What the baseline costs; limits are given as shares of it."""
    unit: str = "ms"
    """Of all these numbers."""
    floor: float = -math.inf
    """What a network must cost at least, for a budget that is to be used."""

    def of(self, chosen: Sequence[int]) -> float:
        """Cost of a network, summed exactly as the latency table does."""
        return math.fsum([self.fixed, *[self.costs[option] for option in chosen]])

    def kept_by(self, chosen: Sequence[int]) -> bool:
        """Whether a network costs no more than the budget and no less than the floor."""
        return self.floor <= self.of(chosen) <= self.budget

    def reachable(self, positions: int) -> tuple[float, float]:
        """Smallest and largest cost of a network of so many positions."""
        return tuple(math.fsum([self.fixed, *[pick(self.costs)] * positions]) for pick in (min, max))

    def require_reachable(self, positions: int) -> None:
        """Raise UserError, naming the reachable range, when no network at all keeps the limit."""
        if self.budget < self.reachable(positions)[0]:
            raise UserError(
                f"{self.name} {self.share:g} cannot be met: reachable range is {self._range(positions)} of the "
                f"baseline's {self.baseline:.4g} {self.unit}; choose a {self.name} in that range"
            )

    @property
    def share(self) -> float:
        """The budget as a share of the baseline's cost."""
        return self.budget / self.baseline

    def _range(self, positions: int) -> str:
        low, high = self.reachable(positions)
        lowest = math.ceil(low / self.baseline * 100) / 100  # rounded up, so that the number printed can be reached
        return f"{lowest:.2f} to {high / self.baseline:.2f}"


BYTES = 4
"""Of a weight or a remembered number: fp32."""


def limits_of(
    config: SimpleNamespace, baseline: Architecture, table: LatencyTable, target: float, **more: float
) -> list[Limit]:
    """The latency limit, called ``target``, and those of ``more``: params, active_params, flops, memory (shares).

    latency_batch_<b> among ``more`` limits the latency at another batch size.  config has the sections model,
    design_space and workload.  FLOPs are per token of the workload; memory is weights and the memory of its batch, in
    bytes.  Raises UserError when the table lacks an option or a batch size.
    """
    attention, blocks = config.workload.attention, [config.model.option(name) for name in config.design_space]

    def latency(name: str, share: float, batch: int | None = None) -> Limit:
        costs = [table.lookup(option, attention, batch) for option in config.design_space]
        whole = table.estimate(baseline, attention, batch)
        return Limit(name, costs, table.lookup("stem", attention, batch), share * whole, whole)

    cost, empty = _costs(config, baseline), config.model.architecture(baseline.vocab_size, ())
    fixed = {
        "params": empty.params(),
        "active_params": empty.active_params(),
        "flops": empty.flops(1, 1, 0, attention),
        "memory": BYTES * empty.params(),
    }
    units = {"params": "parameters", "active_params": "parameters", "flops": "FLOPs per token", "memory": "bytes"}
    limits = [latency("target", target)]
    for name, share in more.items():
        if (batch := batch_of_limit(name)) is not None:
            limits.append(latency(name, share, batch))
            continue
        whole = fixed[name] + sum(cost[name](block) for block in baseline.blocks)
        limits.append(Limit(name, [cost[name](b) for b in blocks], fixed[name], share * whole, whole, units[name]))
    return limits


def _costs(config: SimpleNamespace, baseline: Architecture) -> dict[str, Callable[[BlockSpec], float]]:
    """What one block costs, by name."""
    width, work = baseline.d_model, config.workload

    def remembered(block: BlockSpec) -> int:
        """Numbers per position that an inference keeps for a block: keys and values, or hidden states."""
        if not isinstance(block, Attention):
            return 0
        return 2 * block.width if work.attention == "cached" else width

    return {
        "params": lambda block: block.params(width),
        "active_params": lambda block: block.active_params(width),
        "flops": lambda block: block.flops(width, work.batch, work.tgt_len, work.mem_len, work.attention),
        "memory": lambda block: BYTES * (block.params(width) + work.batch * work.mem_len * remembered(block)),
    }


def used(limits: Sequence[Limit], options: Sequence[int]) -> dict[str, float]:
    """What a network costs by every limit, as a share of the baseline's."""
    return {limit.name: limit.of(options) / limit.baseline for limit in limits}
