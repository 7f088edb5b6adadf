"""Transformers that use less compute: searched with measured latencies, trained, and split into small experts.

import planer
network = planer.load("results/demo/target_0.5/routers")
print(network.generate("def main(", tokens=200, temperature=0.8, seed=1))
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from planer.models.network import load

__all__ = ["load"]


def __getattr__(name: str) -> object:
    """Import what users call when they first do: the workflow imports planer and must not load PyTorch."""
    if name == "load":
        return importlib.import_module("planer.models.network").load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
