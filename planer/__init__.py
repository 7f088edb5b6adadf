"""Transformers that use less compute: searched with measured latencies, trained, and split into small experts.

``planer.load(folder)`` reads a network: planer.models.load.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from planer.models import load

__all__ = ["load"]


def __getattr__(name: str) -> object:
    """Import what users call when they first do: the workflow imports planer and must not load PyTorch."""
    if name == "load":
        return importlib.import_module("planer.models").load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
