"""Variants: the names of the networks in an experiment, which are also its folders.

``baseline``, ``sandwich`` and ``par`` are patterns from the config; ``target_<t>`` is searched for a latency of t
times the baseline's, 0 < t <= 1; the suffix ``-seed<k>`` repeats any of them with other random streams.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from planer.files import UserError

FOLDER = r"[^/]+"
"""What the name of a dataset, an experiment or a variant may be made of: it is one folder of results/."""
PATTERNS = ("baseline", "sandwich", "par")
ALLOWED = "baseline, sandwich, par, target_<t> with 0 < t <= 1; add -seed<k> to repeat one with another seed"


@dataclass(frozen=True)
class Variant:
    """What a variant's name says."""

    name: str
    pattern: str | None
    """Name of the pattern, or None when the network is searched."""
    target: float | None
    """Wanted latency over the baseline's, or None for a pattern."""
    repeat: int
    """The k of ``-seed<k>``; 0 without the suffix."""


def parse_variant(name: str) -> Variant:
    """Read a variant's name.

    Raises UserError naming the value and what is allowed.
    """
    stem, separator, repeat = name.partition("-seed")
    if separator and not re.fullmatch(r"[1-9]\d*", repeat):
        raise UserError(f"variant {name!r}: the seed suffix must be -seed1, -seed2, ...; allowed: {ALLOWED}")
    number = int(repeat) if separator else 0
    if stem in PATTERNS:
        return Variant(name, stem, None, number)
    if stem.startswith("target_"):
        text = stem.removeprefix("target_")
        if not re.fullmatch(r"-?\d+(\.\d+)?", text) or not 0 < float(text) <= 1:
            raise UserError(f"variant {name!r}: target {text!r} must be a number above 0 and up to 1, as in target_0.5")
        return Variant(name, None, float(text), number)
    raise UserError(f"unknown variant {name!r}; allowed: {ALLOWED}")
