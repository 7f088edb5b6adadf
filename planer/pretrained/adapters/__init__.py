"""Adapters of transformers' families: every other file of this folder defines one as ADAPTER."""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from planer.errors import UserError
from planer.pretrained.adapters.adapter import Adapter

if TYPE_CHECKING:
    from torch import nn


@cache
def adapters() -> dict[str, Adapter]:
    """Adapters by the name of their file."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "adapter")
    return {name: import_module(f"{__name__}.{name}").ADAPTER for name in names}


def adapter_for(model: nn.Module) -> Adapter:
    """The adapter of a network in transformers' classes.  Raises UserError when none knows its layers."""
    for adapter in adapters().values():
        if adapter.find(model, adapter.layers):
            return adapter
    raise UserError(
        f"{type(model).__name__} has no feed-forward layer that an adapter knows; adapters: {', '.join(adapters())}; "
        "write planer/pretrained/adapters/<family>.py, as llama.py beside it"
    )
