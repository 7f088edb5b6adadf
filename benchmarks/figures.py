"""Figures of claims: where they stand in JSON files, what they are over several runs, and the bars they should reach.

A figure is text.  ``quality.final.test.bpc`` is a path of keys, ``latency[headline=true].median_ms`` picks the item of
a list whose keys have these values, ``path / path`` is a ratio within one file.  Over several runs a figure is the
mean, or with ``range of path`` the largest value less the smallest.

A bar is text too: ``<= 0.51``, ``>= 2``, ``<= control``, ``<= control + 1 standard error``, or ``no bar``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planer.errors import UserError
from planer.parsing import show

STEP = r"\w+(?:\[[^\[\]]+\])?"
PATH = rf"{STEP}(?:\.{STEP})*"
FIGURE = re.compile(rf"(range of )?({PATH})(?: / ({PATH}))?")
BAR = re.compile(r"no bar|(<=|>=) (-?\d+(?:\.\d+)?)|<= (control)( \+ 1 standard error)?")


@dataclass(frozen=True)
class Measured:
    """A figure over runs."""

    values: tuple[float, ...]
    """One a run."""
    value: float
    """Mean or range."""
    standard_error: float | None
    """Of a mean over two runs or more."""

    def __str__(self) -> str:
        error = "" if self.standard_error is None else f" ± {self.standard_error:.2g}"
        return f"{self.value:.4g}{error}"


def check_figure(text: str) -> None:
    """Raise UserError unless text is a figure."""
    if not FIGURE.fullmatch(text):
        raise UserError(
            f"figure {show(text)}: write a path such as quality.final.test.bpc, path / path, or range of path"
        )


def check_bar(text: str) -> None:
    """Raise UserError unless text is a bar."""
    if not BAR.fullmatch(text):
        raise UserError(f"bar {show(text)}: write <= 0.51, >= 2, <= control, <= control + 1 standard error, or no bar")


def measured(figure: str, files: Sequence[dict]) -> Measured:
    """A figure over the contents of files, one a run.  Raises UserError where a file lacks it."""
    spread, path, divisor = FIGURE.fullmatch(figure).groups()
    values = tuple(_ratio(content, path, divisor) if divisor else number(content, path) for content in files)
    if spread:
        return Measured(values, max(values) - min(values), None)
    return Measured(values, float(np.mean(values)), standard_error(values))


def standard_error(values: Sequence[float]) -> float | None:
    """Of a mean; None for one value."""
    return float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else None


def number(content: dict, path: str) -> float:
    """The number at a path.  Raises UserError naming the step that leads nowhere."""
    value: object = content
    for key, where in re.findall(r"(\w+)(?:\[([^\]]+)\])?", path):
        if not isinstance(value, dict) or key not in value:
            raise UserError(f"{path}: there is no {key}")
        value = _item(value[key], where, path) if where else value[key]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UserError(f"{path} is {show(value)}, not a number")
    return float(value)


def _ratio(content: dict, path: str, divisor: str) -> float:
    if not (value := number(content, divisor)):
        raise UserError(f"{path} / {divisor}: {divisor} is 0")
    return number(content, path) / value


def _item(values: object, where: str, path: str) -> object:
    """The one item of a list whose keys have the values of ``key=value,key=value``."""
    wanted = {key: _plain(text) for key, _, text in (part.partition("=") for part in where.split(","))}
    rows = [row for row in values if isinstance(row, dict)] if isinstance(values, list) else []
    found = [row for row in rows if wanted.items() <= row.items()]
    if len(found) != 1:
        raise UserError(f"{path}: {len(found)} items have {where}, not 1")
    return found[0]


def _plain(text: str) -> object:
    """A number or truth value as in JSON; other text is itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def limit_of(bar: str, own: Measured, control: Measured | None) -> float | None:
    """The number that a bar stands for; None for ``no bar``.

    ``1 standard error`` is that of the mean difference between the runs and the control's, which are pairs of one seed.
    """
    _, plain, beside, error = BAR.fullmatch(bar).groups()
    if beside:
        differences = np.subtract(own.values, control.values)
        return control.value + (standard_error(differences) or 0.0 if error else 0.0)
    return float(plain) if plain else None


def is_reached(bar: str, value: float, limit: float) -> bool:
    """Whether a value is on the right side of the bar's limit."""
    return value >= limit if bar.startswith(">=") else value <= limit
