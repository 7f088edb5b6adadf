"""Variants: the names of an experiment's networks, and of their folders.

    baseline                    trained from random weights; all others start from it and are compared with it
    continued                   control: the baseline, trained on for as long as the others are trained
    sandwich, par               patterns from the config
    pattern_<name>              another pattern from the config, patterns.others.<name>
    target_<t>                  searched for a latency of t times the baseline's, t from 0.001 to 1 (PLANER)
    isoparam_<t>                the same search with a wide dense layer instead of mixtures of experts (PLANER)
    par_search                  searched in PAR's space, without a latency term
    shared_<t>                  chosen for this latency from the supernet that serves all targets of pareto.json
    shallow_<t>                 control: the baseline's own blocks, fewer of them
    random_<t>_<n>              control n: sampled from the networks that use 98 to 100 % of the latency
    lts_<t>                     control: most decoder parameters within the latency (LTS, arXiv 2203.02094)
    keep_<q>                    the fastest network whose validation loss is at most q above the baseline's, q < 0.2

All but the baseline start from the trained baseline and have it as their teacher.  The suffix ``-scratch`` is the
papers' method: search and training from random weights, without a teacher; continued and keep_<q> have no such suffix.
The suffix ``-seed<k>`` comes last and repeats everything, the baseline included, with other random streams.  Every
variant has one name: ``target_0.5``, not ``target_0.50`` or ``target_.5``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal

from planer.errors import UserError
from planer.parsing import show

FOLDER = r"[A-Za-z0-9][A-Za-z0-9._+-]*"
"""Names of datasets, experiments and variants.  They name folders, and Snakemake's jobs pass them to a shell."""
LONGEST_NAME = 100
"""Most characters of a name.  File systems allow 255, with what suffixes and files of other programs add."""
REPEATS = 20
"""Equal parts at the end of a name for which Snakemake takes a rule for one that feeds itself."""
RESERVED = r"data|models|slurm|mlflow.*|mlartifacts"
"""Names that no experiment may have: results/ and logs/ have other contents under them."""
PATTERNS = {"baseline": "baseline", "continued": "baseline", "sandwich": "sandwich", "par": "par"}
"""Variants with a given block order, and the names of these patterns in the configuration."""
OTHER_PATTERN = "pattern_"
"""Other variants with a given block order begin with it."""
PATTERN_NAME = r"[a-z][a-z0-9_]*"
"""Names of other patterns."""
TARGETED = ("target", "isoparam", "shared", "shallow", "lts")
"""Variants whose name ends in a latency target."""
SEARCHED = ("target", "isoparam", "shared", "par_search")
SCRATCH = "-scratch"
MOST = 999_999
"""Largest k of -seed<k> and n of random_<t>_<n>."""
LARGEST_LOSS = 0.2
"""q of keep_<q> is below this."""
ALLOWED = (
    "baseline, continued, sandwich, par, pattern_<name>, par_search, target_<t>, isoparam_<t>, shared_<t>, "
    "shallow_<t>, lts_<t>, random_<t>_<n> and keep_<q> with t from 0.001 to 1, n = 1, 2, ... and q below 0.2; add "
    "-scratch for search and training from random weights (except to baseline, continued and keep_<q>), -seed<k> to "
    "repeat one with another seed"
)


@dataclass(frozen=True)
class Variant:
    """The parts of a variant's name."""

    method: str
    """The name without numbers and suffixes."""
    target: float | None = None
    """Wanted latency over the baseline's; None for methods without a latency target."""
    number: int = 0
    """The n of a random control."""
    loss: float | None = None
    """The q of keep_<q>."""
    scratch: bool = False
    """Whether search and training start from random weights: the baseline and ``-scratch``."""
    repeat: int = 0
    """The k of ``-seed<k>``; 0 without the suffix."""

    @property
    def name(self) -> str:
        """The whole name."""
        numbers = [spelled(value) for value in (self.target, self.loss) if value is not None]
        numbers += [str(self.number)] if self.number else []
        suffix = SCRATCH if self.from_papers else ""
        return "_".join([self.method, *numbers]) + suffix + _seed(self.repeat)

    @property
    def pattern(self) -> str | None:
        """Name of the pattern in the configuration, or None."""
        other = self.method.removeprefix(OTHER_PATTERN)
        return other if other != self.method else PATTERNS.get(self.method)

    @property
    def searched(self) -> bool:
        """Whether it is chosen by a search: with a supernet, unless no proposer needs one."""
        return self.method in SEARCHED

    @property
    def from_papers(self) -> bool:
        """Whether it is ``-scratch``, which has no teacher in any stage."""
        return self.scratch and self.method != "baseline"

    @property
    def is_taught(self) -> bool:
        """Whether the baseline is its teacher."""
        return not self.scratch and self.method != "continued"

    @property
    def baseline(self) -> str:
        """The baseline with the same seed: the variant starts from it and is compared with it."""
        return f"baseline{_seed(self.repeat)}"


def check_name(kind: str, name: str) -> None:
    """Raise UserError unless a dataset, experiment or variant (``kind``) may have this name."""
    if not re.fullmatch(FOLDER, name):
        raise UserError(
            f"{kind} {show(name)}: names hold letters, digits, . _ + and -, and begin with a letter or digit"
        )
    if len(name) > LONGEST_NAME:
        raise UserError(f"{kind} {show(name)}: names have at most {LONGEST_NAME} characters")
    if re.search(rf"(.+)\1{{{REPEATS - 1}}}$", name):
        raise UserError(f"{kind} {show(name)}: names must not end in {REPEATS} equal parts, which Snakemake refuses")
    if kind == "experiment" and re.fullmatch(RESERVED, name):
        raise UserError(f"experiment {show(name)}: results/{name} has other contents; give the experiment another name")


def spelled(number: float) -> str:
    """The spelling of a number in names: the shortest decimal, ``0.5`` or ``1``; below 0.0001 with an exponent,
    ``1e-9``."""
    exact = Decimal(repr(float(number))).normalize()
    if 0 < abs(exact) < Decimal("0.0001"):
        digits, exponent = f"{exact:e}".split("e")
        return f"{digits}e{int(exponent)}"
    return f"{exact:f}"


def parse_variant(name: str) -> Variant:
    """Read a variant's name.

    Raises UserError naming the value and what is allowed, or the right spelling of the name.
    """
    variant = _parse(name)
    if name != variant.name:
        raise UserError(f"variant {show(name)}: write it {variant.name}")
    return variant


def _parse(name: str) -> Variant:
    """Like parse_variant, for every spelling of the numbers."""
    base, separator, repeat = name.partition("-seed")
    if separator and not _counts(repeat):
        raise UserError(
            f"variant {show(name)}: the seed suffix must be -seed1, -seed2, ..., -seed{MOST}; allowed: {ALLOWED}"
        )
    suffix = re.search(r"-([a-z]+)$", base)
    if suffix and suffix[0] != SCRATCH:
        raise UserError(f"variant {show(name)}: unknown suffix {suffix[0]}; allowed: {ALLOWED}")
    base = base.removesuffix(SCRATCH)
    fields = {"scratch": bool(suffix) or base == "baseline", "repeat": int(repeat) if separator else 0}
    method, separator, rest = base.partition("_")
    if base in (*PATTERNS, "par_search"):
        if suffix and base in ("baseline", "continued"):
            raise UserError(f"variant {show(name)}: {base} has no {SCRATCH}; allowed: {ALLOWED}")
        return Variant(base, **fields)
    if re.fullmatch(OTHER_PATTERN + PATTERN_NAME, base):
        check_name("variant", name)
        if base.removeprefix(OTHER_PATTERN) in PATTERNS.values():
            raise UserError(f"variant {show(name)}: write it {name.removeprefix(OTHER_PATTERN)}")
        return Variant(base, **fields)
    if separator and method in TARGETED:
        return Variant(method, _target(name, rest, method), **fields)
    if separator and method == "random":
        text, _, number = rest.partition("_")
        target = _target(name, text, method)
        if not _counts(number):
            raise UserError(
                f"variant {show(name)}: number {show(number)} must be 1, 2, ..., {MOST}, as in random_0.5_1"
            )
        return Variant(method, target, int(number), **fields)
    if separator and method == "keep":
        if suffix:
            raise UserError(f"variant {show(name)}: {method}_<q> has no {SCRATCH}; allowed: {ALLOWED}")
        return Variant(method, loss=_loss(name, rest), **fields)
    raise UserError(f"unknown variant {show(name)}; allowed: {ALLOWED}")


def _seed(repeat: int) -> str:
    return f"-seed{repeat}" if repeat else ""


def _counts(text: str) -> bool:
    """Whether a text, in digits of any script, is a number from 1 to MOST."""
    return bool(re.fullmatch(r"\d{1,9}", text)) and 1 <= int(text) <= MOST


def _target(name: str, text: str, method: str) -> float:
    number = re.fullmatch(r"\d*\.?\d*", text) and re.search(r"\d", text)
    if not number or not 0.001 <= float(text) <= 1:
        raise UserError(
            f"variant {show(name)}: target {show(text)} must be a number from 0.001 to 1, as in {method}_0.5"
        )
    return float(text)


def _loss(name: str, text: str) -> float:
    number = re.fullmatch(r"(\d+\.?\d*|\.\d+)(e-?\d{1,2})?", text, re.ASCII)
    if not number or not 0 < float(text) < LARGEST_LOSS:
        raise UserError(
            f"variant {show(name)}: {show(text)} must be a number above 0 and below {LARGEST_LOSS}, as in keep_0.01"
        )
    return float(text)
