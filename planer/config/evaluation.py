"""Evaluation of one network, and comparison of several."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from planer.config.bounds import PositiveShare, Rounds, Target
from planer.config.thresholds import ThresholdConfig
from planer.config.variant import parse_variant, spelled
from planer.errors import UserError
from planer.parsing import Items, Range


@dataclass(frozen=True)
class EvaluateConfig(ThresholdConfig):
    """Quality, latency and the dynamic-k sweep."""

    latency_rounds: Rounds


@dataclass(frozen=True)
class RepeatabilityConfig:
    """Repeats of one variant and of the baseline, with other random streams."""

    variant: str
    seeds: Annotated[int, Range(2, 1_000)]
    margin: PositiveShare
    power: PositiveShare
    alpha: Annotated[float, Range(0, 0.5, above=True, below=True)]

    def __post_init__(self) -> None:
        variant = parse_variant(self.variant)
        if variant.repeat or self.variant == "baseline":
            raise UserError(f"variant is {self.variant!r}; it must be a variant other than baseline, without -seed<k>")

    def repeats(self, variant: str) -> list[str]:
        """Names of a variant's repeats."""
        return [variant, *(f"{variant}-seed{k}" for k in range(1, self.seeds))]


@dataclass(frozen=True)
class ParetoConfig:
    """Networks for many targets with one supernet."""

    targets: Annotated[tuple[Target, ...], Items(3, 100)]
    compared: Annotated[tuple[Target, ...], Items(3, 100)]

    def __post_init__(self) -> None:
        for target in self.compared:
            if target not in self.targets:
                raise UserError(f"compared: {target} is none of the targets ({', '.join(map(str, self.targets))})")

    @property
    def supernet(self) -> str:
        """The variant whose supernet serves all targets: the loosest."""
        return self.separate(max(self.targets))

    def separate(self, target: float) -> str:
        """The variant that is searched separately for a target."""
        return f"target_{spelled(target)}"

    def shared(self, target: float) -> str:
        """The variant that is chosen for a target with the common supernet.

        For the loosest target this is target_<t> itself, whose supernet is the common one.
        """
        return self.supernet if target == max(self.targets) else f"shared_{spelled(target)}"
