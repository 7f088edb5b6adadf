"""What pages are made of: sections, tables and the texts of their cells.  Templates turn them into HTML."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import jinja2
import pandas as pd


def environment(*folders: Path) -> jinja2.Environment:
    """Templates of these folders and of this one, which has what all pages share."""
    loader = jinja2.FileSystemLoader([*folders, Path(__file__).parent])
    return jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)


def section(title: str, text: str, figure: str, *tables: dict) -> dict:
    """A section of the page: a paragraph, the figure of that name where there is one, and tables."""
    return {"title": title, "text": text, "figure": figure, "tables": tables}


def table(columns: list[str], rows: list[list[str]], *, text=(), title: str = "", marks: Sequence[bool] = ()) -> dict:
    """A table for the page: text columns are set left, marked rows shaded; with a title it can be folded away."""
    marks = marks or [False] * len(rows)
    shaded = [{"cells": cells, "mark": mark} for cells, mark in zip(rows, marks, strict=True)]
    return {"columns": columns, "rows": shaded, "text": text, "title": title}


def cell(value, show: Callable[[float], str]) -> str:
    """A value as show writes it, or a dash where there is none."""
    return "\u2013" if value is None or pd.isna(value) else show(value)


def milliseconds(value: float) -> str:
    """Milliseconds with three significant digits."""
    return f"{value:#.3g}" if value < 100 else f"{value:.0f}"


def count(value: float) -> str:
    """A large number with a metric letter: 1.41 M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{milliseconds(value / size)} {letter}"
    return f"{value:.0f}"
