"""What is measured of a finished network, and what is concluded from several."""

from __future__ import annotations

from dataclasses import dataclass

from planer.files import UserError
from planer.parsing import not_negative, positive, share
from planer.variant import parse_variant


@dataclass(frozen=True)
class EvaluateConfig:
    """Quality, latency and the dynamic-k sweep."""

    batch: int
    """Streams scored side by side."""
    tgt_len: int
    """Tokens per call of the headline protocol; with same_length it does not change the result."""
    mem_len: int
    """Remembered positions of the headline protocol."""
    clamp_len: int
    """Distances beyond this are treated as this far; needed when mem_len exceeds what training saw. 0 is off."""
    taus: tuple[float, ...]
    """Dynamic-k thresholds; 0 (all experts) is always evaluated."""
    latency_rounds: int
    """Interleaved repeats of each latency measurement."""

    def __post_init__(self) -> None:
        positive(self, "batch", "tgt_len", "latency_rounds")
        not_negative(self, "mem_len", "clamp_len")
        for tau in self.taus:
            if not 0 <= tau <= 1:
                raise UserError(f"taus: {tau} is outside 0 to 1")


@dataclass(frozen=True)
class RepeatabilityConfig:
    """Repeats of one variant and of the baseline, with other random streams."""

    variant: str
    """What is repeated."""
    seeds: int
    """Repeats of each, the first without a suffix."""
    margin: float
    """The variant may be worse than the baseline by this share and still count as no worse."""
    power: float
    """Wanted chance that the test shows this for a variant as good as the baseline."""
    alpha: float
    """Chance that the test shows this for a variant that is worse by the margin."""

    def __post_init__(self) -> None:
        variant = parse_variant(self.variant)
        if variant.repeat or self.variant == "baseline":
            raise UserError(f"variant is {self.variant!r}; it must be a variant other than baseline, without -seed<k>")
        if self.seeds < 2:
            raise UserError(f"seeds is {self.seeds}; a spread needs at least 2")
        positive(self, "margin", "power", "alpha")
        share(self, "margin", "power", "alpha")

    def repeats(self, variant: str) -> list[str]:
        """Names of a variant's repeats."""
        return [variant, *(f"{variant}-seed{k}" for k in range(1, self.seeds))]


@dataclass(frozen=True)
class ParetoConfig:
    """Networks for many targets out of one supernet."""

    targets: tuple[float, ...]
    """Wanted latencies over the baseline's."""
    compared: tuple[float, ...]
    """Targets whose network is retrained, beside that of a search of its own."""

    def __post_init__(self) -> None:
        for target in self.targets:
            parse_variant(self.own(target))
        if len({self.own(target) for target in self.targets}) < len(self.targets):
            raise UserError(f"targets: {list(self.targets)} must name each target once")
        if len(set(self.compared)) < 3 or not set(self.compared) <= set(self.targets):
            raise UserError(f"compared: {list(self.compared)} must be at least three of the targets")

    @property
    def supernet(self) -> str:
        """The variant whose supernet serves all targets: the mildest."""
        return self.own(max(self.targets))

    def own(self, target: float) -> str:
        """The variant with a search of its own for a target."""
        return f"target_{target:g}"

    def shared(self, target: float) -> str:
        """The variant that is chosen for a target from the common supernet.

        For the mildest target that supernet is its own, and shared_<t> would be the same network as target_<t>.
        """
        return self.supernet if target == max(self.targets) else f"shared_{target:g}"
