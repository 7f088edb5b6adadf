"""Paths in a configuration: relative to the working directory, absolute, or below ``$PLANER_ASSETS``."""

from __future__ import annotations

import os
from pathlib import Path

from planer.errors import UserError
from planer.parsing import show

VARIABLE = "$PLANER_ASSETS"


def assets_home() -> Path:
    """The folder that ``make assets`` puts networks and data under: ``$PLANER_ASSETS``, or ~/.cache/planer/assets."""
    return Path(os.environ.get("PLANER_ASSETS") or Path.home() / ".cache/planer/assets")


def check_path(key: str, path: str) -> None:
    """Raise UserError for a path with another variable than $PLANER_ASSETS at its start.  key: what names the path."""
    if "$" in path.removeprefix(VARIABLE) or path.startswith(VARIABLE) and path[len(VARIABLE) :][:1] not in ("", "/"):
        raise UserError(f"{key} is {show(path)}; the only variable is {VARIABLE}, at the start: {VARIABLE}/minilm")


def resolve(path: str) -> Path:
    """The path that a checked text stands for."""
    if path.startswith(VARIABLE):
        return Path(f"{assets_home()}{path.removeprefix(VARIABLE)}")
    return Path(path)
