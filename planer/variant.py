"""Variants: the names of the networks in an experiment, which are also its folders.

    baseline, sandwich, par     patterns from the config
    target_<t>                  searched for a latency of t times the baseline's, 0 < t <= 1 (PLANER)
    isoparam_<t>                the same search with a wide dense layer in the place of mixtures of experts (PLANER)
    par_search                  searched in PAR's space, without a latency term
    shared_<t>                  chosen for this latency from the supernet that serves all targets of pareto.json
    lts_<t>                     most decoder parameters within the latency, no search (LTS, arXiv 2203.02094)
    random_<t>_<n>              control n: drawn from the networks that use 98 to 100 % of the latency, no search

A suffix says what retraining starts from instead of random weights: ``-inherit`` (the supernet's weights),
``-upcycle`` (experts copied from the baseline's feed-forward layers) or ``-distill`` (random weights, and the
baseline's predictions as a second teacher).  The suffix ``-seed<k>`` comes last and repeats any of them with other
random streams.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from planer.files import UserError

FOLDER = r"[^/]+"
"""What the name of a dataset, an experiment or a variant may be made of: it is one folder of results/."""
PATTERNS = ("baseline", "sandwich", "par")
SEARCHED = ("target", "isoparam", "par_search")
STARTS = ("inherit", "upcycle", "distill")
ALLOWED = (
    "baseline, sandwich, par, par_search, target_<t>, isoparam_<t>, shared_<t>, lts_<t>, random_<t>_<n> with "
    "0 < t <= 1 and n = 1, 2, ...; add -inherit, -upcycle or -distill for a warm start, -seed<k> to repeat one with "
    "another seed"
)


@dataclass(frozen=True)
class Variant:
    """What a variant's name says."""

    name: str
    arm: str
    """The name without its numbers, which says how the network comes about."""
    target: float | None = None
    """Wanted latency over the baseline's, or None where latency has no say."""
    number: int = 0
    """The n of a random control."""
    start: str = "scratch"
    """What retraining starts from: ``scratch``, or one of STARTS."""
    repeat: int = 0
    """The k of ``-seed<k>``; 0 without the suffix."""

    @property
    def original(self) -> str:
        """The variant of the same network that is trained from scratch; for those it is the name itself."""
        return self.name.replace(f"-{self.start}", "", 1) if self.start != "scratch" else self.name

    @property
    def pattern(self) -> str | None:
        """Name of the pattern in the config, or None."""
        return self.arm if self.arm in PATTERNS else None

    @property
    def searched(self) -> bool:
        """Whether a supernet is trained for it."""
        return self.arm in SEARCHED


def parse_variant(name: str) -> Variant:
    """Read a variant's name.

    Raises UserError naming the value and what is allowed.
    """
    stem, separator, repeat = name.partition("-seed")
    if separator and not re.fullmatch(r"[1-9]\d*", repeat):
        raise UserError(f"variant {name!r}: the seed suffix must be -seed1, -seed2, ...; allowed: {ALLOWED}")
    suffix = re.search(r"-([a-z]+)$", stem)
    if suffix and suffix[1] not in STARTS:
        raise UserError(f"variant {name!r}: unknown suffix -{suffix[1]}; allowed: {ALLOWED}")
    stem = stem.removesuffix(suffix[0]) if suffix else stem
    training = {"start": suffix[1] if suffix else "scratch", "repeat": int(repeat) if separator else 0}
    arm, separator, rest = stem.partition("_")
    if stem in (*PATTERNS, "par_search"):
        variant = Variant(name, stem, **training)
    elif separator and arm in ("target", "isoparam", "shared", "lts"):
        variant = Variant(name, arm, _target(name, rest, arm), **training)
    elif separator and arm == "random":
        text, _, number = rest.partition("_")
        target = _target(name, text, arm)
        if not re.fullmatch(r"[1-9]\d*", number):
            raise UserError(f"variant {name!r}: number {number!r} must be 1, 2, ..., as in random_0.5_1")
        variant = Variant(name, arm, target, int(number), **training)
    else:
        raise UserError(f"unknown variant {name!r}; allowed: {ALLOWED}")
    if stem == "baseline" and variant.start != "scratch":
        raise UserError(f"variant {name!r}: the baseline is what warm starts begin from; allowed: {ALLOWED}")
    if variant.start == "inherit" and variant.arm not in (*SEARCHED, "shared"):
        raise UserError(f"variant {name!r}: only a searched network can inherit weights: target_<t>, shared_<t>, ...")
    return variant


def _target(name: str, text: str, arm: str) -> float:
    if not re.fullmatch(r"-?\d+(\.\d+)?", text) or not 0 < float(text) <= 1:
        raise UserError(f"variant {name!r}: target {text!r} must be a number above 0 and up to 1, as in {arm}_0.5")
    return float(text)
