"""Variants: the names of the networks in an experiment, which are also its folders.

    baseline, sandwich, par     patterns from the config
    target_<t>                  searched for a latency of t times the baseline's, t from 0.001 to 1 (PLANER)
    isoparam_<t>                the same search with a wide dense layer in the place of mixtures of experts (PLANER)
    par_search                  searched in PAR's space, without a latency term
    shared_<t>                  chosen for this latency from the supernet that serves all targets of pareto.json
    lts_<t>                     most decoder parameters within the latency, no search (LTS, arXiv 2203.02094)
    random_<t>_<n>              control n: drawn from the networks that use 98 to 100 % of the latency, no search

A suffix says what retraining starts from instead of random weights: ``-inherit`` (the supernet's weights),
``-upcycle`` (experts copied from the baseline's feed-forward layers) or ``-distill`` (random weights, and the
baseline's predictions as a second teacher).  The suffix ``-seed<k>`` comes last and repeats any of them with other
random streams.  Every variant has one name: ``target_0.5``, not ``target_0.50`` or ``target_.5``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal

from planer.files import UserError
from planer.parsing import show

FOLDER = r"[A-Za-z0-9][A-Za-z0-9._+-]*"
"""Names of datasets, experiments and variants.  Each is a folder, and reaches the shell through Snakemake's jobs."""
RESERVED = r"data|models|slurm|mlflow.*|mlartifacts"
"""Names that no experiment may have: results/ and logs/ hold other things under them."""
PATTERNS = ("baseline", "sandwich", "par")
SEARCHED = ("target", "isoparam", "par_search")
STARTS = ("inherit", "upcycle", "distill")
ALLOWED = (
    "baseline, sandwich, par, par_search, target_<t>, isoparam_<t>, shared_<t>, lts_<t>, random_<t>_<n> with "
    "t from 0.001 to 1 and n = 1, 2, ...; add -inherit, -upcycle or -distill for a warm start, -seed<k> to repeat one "
    "with another seed"
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
    scratch: bool = False
    """Whether the search begins with random weights."""

    @property
    def original(self) -> str:
        """The variant of the same network that is trained from scratch; for those it is the name itself."""
        return self.name.replace(f"-{self.start}", "", 1) if self.start != "scratch" else self.name

    @property
    def pattern(self) -> str | None:
        """Name of the pattern in the config, or None."""
        return self.arm if self.arm in PATTERNS else None

    @property
    def baseline(self) -> str:
        """The baseline that it starts from and is compared with: the one with the same random streams."""
        return f"baseline-seed{self.repeat}" if self.repeat else "baseline"

    @property
    def searched(self) -> bool:
        """Whether a supernet is trained for it."""
        return self.arm in SEARCHED


def check_name(what: str, name: str) -> None:
    """Raise UserError unless a dataset, experiment or variant (``what``) may have this name."""
    if not re.fullmatch(FOLDER, name):
        raise UserError(
            f"{what} {show(name)}: names hold letters, digits, . _ + and -, and begin with a letter or digit"
        )
    if what == "experiment" and re.fullmatch(RESERVED, name):
        raise UserError(f"experiment {show(name)}: results/{name} holds other things; give the experiment another name")


def spelled(number: float) -> str:
    """The one spelling of a number in names: the shortest decimal, ``0.5`` or ``1``, without an exponent."""
    return f"{Decimal(repr(float(number))).normalize():f}"


def parse_variant(name: str) -> Variant:
    """Read a variant's name.

    Raises UserError naming the value and what is allowed, or the one spelling of the variant that is meant.
    """
    variant = _parse(name)
    numbers = [spelled(variant.target)] if variant.target is not None else []
    numbers += [str(variant.number)] if variant.number else []
    canonical = "_".join([variant.arm, *numbers])
    canonical += f"-{variant.start}" if variant.start != "scratch" else ""
    canonical += f"-seed{variant.repeat}" if variant.repeat else ""
    if name != canonical:
        raise UserError(f"variant {show(name)}: write it {canonical}")
    return variant


def _parse(name: str) -> Variant:
    """Like parse_variant, for every spelling of the numbers."""
    stem, separator, repeat = name.partition("-seed")
    if separator and not _counts(repeat):
        raise UserError(f"variant {show(name)}: the seed suffix must be -seed1, -seed2, ...; allowed: {ALLOWED}")
    suffix = re.search(r"-([a-z]+)$", stem)
    if suffix and suffix[1] not in STARTS:
        raise UserError(f"variant {show(name)}: unknown suffix -{suffix[1]}; allowed: {ALLOWED}")
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
        if not _counts(number):
            raise UserError(f"variant {show(name)}: number {show(number)} must be 1, 2, ..., as in random_0.5_1")
        variant = Variant(name, arm, target, int(number), **training)
    else:
        raise UserError(f"unknown variant {show(name)}; allowed: {ALLOWED}")
    if stem == "baseline" and variant.start != "scratch":
        raise UserError(f"variant {show(name)}: the baseline is what warm starts begin from; allowed: {ALLOWED}")
    if variant.start == "inherit" and variant.arm not in (*SEARCHED, "shared"):
        raise UserError(
            f"variant {show(name)}: only a searched network can inherit weights: target_<t>, shared_<t>, ..."
        )
    return variant


def _counts(text: str) -> bool:
    """Whether a text, in digits of any script, is a number from 1 to 999,999."""
    return bool(re.fullmatch(r"\d{1,9}", text)) and 1 <= int(text) <= 999_999


def _target(name: str, text: str, arm: str) -> float:
    number = re.fullmatch(r"\d*\.?\d*", text) and re.search(r"\d", text)
    if not number or not 0.001 <= float(text) <= 1:
        raise UserError(f"variant {show(name)}: target {show(text)} must be a number from 0.001 to 1, as in {arm}_0.5")
    return float(text)
