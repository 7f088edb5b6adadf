"""The kinds of blocks: one a file in this folder, or in the folder ``specs`` of a user's own blocks."""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module

from planer import specs
from planer.files import UserError, one_line
from planer.plugins import check_plugin_folders
from planer.specs.block import BlockSpec


@cache
def kinds() -> dict[str, type[BlockSpec]]:
    """Specifications by kind: blocks that do nothing, those that remember, all others, those made by conversion.

    Raises UserError when a user's own file defines no block of its name, or cannot be imported.
    """
    check_plugin_folders()
    own = {module.name for module in pkgutil.iter_modules(specs.__path__[1:])}
    found: dict[str, type[BlockSpec]] = {}
    for name in sorted({module.name for module in pkgutil.iter_modules(specs.__path__)}):
        try:
            module = import_module(f"planer.specs.{name}")
        except Exception as error:
            if name not in own:
                raise
            raise UserError(f"the block specification {name}.py cannot be imported: {one_line(error)}") from error
        here = [value for value in vars(module).values() if _is_spec(value) and value.__module__ == module.__name__]
        if name in own and [getattr(spec, "kind", None) for spec in here] != [name]:
            raise UserError(f"{module.__file__} must define one BlockSpec, with kind = {name!r}")
        found |= {spec.kind: spec for spec in here}
    return dict(sorted(found.items(), key=lambda item: _order(item[1])))


def _order(spec: type[BlockSpec]) -> tuple[bool, bool, bool, str]:
    return not spec.identity, not spec.remembers, spec.dynamic, spec.kind


def _is_spec(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, BlockSpec) and value is not BlockSpec


def kind_of(option: str) -> type[BlockSpec]:
    """The kind whose name an option's name begins with, the longest such name.  Raises KeyError for other names."""
    return kinds()[max((kind for kind in kinds() if option.startswith(kind)), key=len, default=option)]
