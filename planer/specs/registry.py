"""The kinds of blocks: each is a file in this folder, or in the folder ``specs`` of a user's own blocks."""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType

from planer import specs
from planer.errors import UserError
from planer.files import one_line
from planer.specs.block import BlockSpec
from planer.specs.plugins import VARIABLE, check_plugin_folders, plugin_folders


@cache
def kinds() -> dict[str, type[BlockSpec]]:
    """Specifications by kind: first skip, then attention, then others, then those made by conversion.

    Raises UserError when a user's own file defines no block of its name, or cannot be imported.
    """
    check_plugin_folders()
    plugins = {module.name for module in pkgutil.iter_modules(specs.__path__[1:])}
    found: dict[str, type[BlockSpec]] = {}
    for name in sorted({module.name for module in pkgutil.iter_modules(specs.__path__)}):
        here = _plugin_specs(name) if name in plugins else _specs_in(import_module(f"planer.specs.{name}"))
        found |= {spec.kind: spec for spec in here}
    return dict(sorted(found.items(), key=lambda item: _order(item[1])))


def _order(spec: type[BlockSpec]) -> tuple[bool, bool, bool, str]:
    return not spec.identity, not spec.remembers, spec.dynamic, spec.kind


def _specs_in(module: ModuleType) -> list[type[BlockSpec]]:
    values = [value for value in vars(module).values() if isinstance(value, type) and issubclass(value, BlockSpec)]
    return [value for value in values if value.__module__ == module.__name__ and value is not BlockSpec]


def _plugin_specs(name: str) -> list[type[BlockSpec]]:
    """The specification in a user's own file.  Raises UserError where there is not exactly one of its name."""
    if any(module.name == name for module in pkgutil.iter_modules(specs.__path__[:1])):
        raise UserError(f"{VARIABLE}: {name}.py has the name of one of planer's own files; rename it")
    try:
        found = _specs_in(import_module(f"planer.specs.{name}"))
    except (Exception, SystemExit) as error:
        raise UserError(f"{VARIABLE}: specs/{name}.py cannot be imported: {one_line(error)}") from error
    if [getattr(spec, "kind", None) for spec in found] != [name]:
        raise UserError(f"{VARIABLE}: specs/{name}.py must define one BlockSpec, with kind = {name!r}")
    if not any(Path(folder, f"{name}.py").is_file() for folder in plugin_folders("blocks")):
        raise UserError(f"{VARIABLE}: there is specs/{name}.py, but no blocks/{name}.py; write the module")
    return found


def kind_of(option: str) -> type[BlockSpec]:
    """The kind of an option: the longest kind that its name starts with.  Raises KeyError for other names."""
    return kinds()[max((kind for kind in kinds() if option.startswith(kind)), key=len, default=option)]
