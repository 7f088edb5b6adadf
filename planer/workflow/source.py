"""What a stage's result depends on in the code: its script, the modules that it reaches, and the data beside them.

Snakemake's own trigger looks at the date and text of a script and never at the library behind it.  A hash among the
params of a rule does both: a fresh clone repeats nothing, and an edited module repeats the stages that import it,
directly or not, and no others.

What cannot change a result does not count:

- comments, docstrings and layout, and imports for annotations (``if TYPE_CHECKING``);
- modules that log, mirror, report progress or convert a configuration (CHANGES_NO_RESULT);
- what planer/config holds and checks: the values that a stage reads are among its params.  Its functions count;
- packages that only re-export names: ``from planer.config import derive_seed`` reaches planer/config/seed.py alone.

Imports that are computed at run time are not seen, but for registries (REGISTRIES).
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from itertools import accumulate
from pathlib import Path

from planer.errors import UserError
from planer.files import one_line
from planer.specs.plugins import plugin_folders

CHANGES_NO_RESULT = ("__init__", "git", "parsing", "progress", "workflow")
"""Modules and packages of planer whose edits repeat nothing."""
REGISTRIES = ("planer/blocks", "planer/heads", "planer/specs")
"""Folders whose modules are found by their files: who reaches one of them reaches all, a user's own blocks too."""
VALUES = "config"
"""The package whose fields and checks repeat nothing."""
DATA = (".cpp", ".json")
"""Files in a module's folder that belong to it: kernels in C++, and tables of the fastest kernels, between which the
last bits of results differ, and measured latencies by more."""


def source_hash(script: Path, root: Path) -> str:
    """Hash of a script's code and of all that it reaches in planer; root is the repository's folder."""
    digest = hashlib.sha256()
    for path in sorted(reached_files(script, root)):
        content = path.read_bytes() if path.suffix in DATA else _module(path, root)[0].encode()
        name = path.relative_to(root).as_posix() if path.is_relative_to(root) else f"{path.parent.name}/{path.name}"
        digest.update(name.encode() + b"\0" + content)
    return digest.hexdigest()[:12]


def reached_files(script: Path, root: Path) -> set[Path]:
    """The script, the modules of planer that it imports, directly or not, and the data in these modules' folders."""
    waiting, reached = [script], set()
    while waiting:
        path = waiting.pop()
        if path not in reached and _part(path, root) not in CHANGES_NO_RESULT:
            reached.add(path)
            waiting += [file for name in _module(path, root)[1] for file in _imported(*name, root)]
            waiting += _registered_beside(path, root)
    folders = {path.parent for path in reached - {script}}
    return reached | {path for folder in folders for path in folder.iterdir() if path.suffix in DATA}


def _registered_beside(path: Path, root: Path) -> list[Path]:
    """All modules of the registry that a file belongs to; none for other files."""
    if not path.is_relative_to(root) or path.parent.relative_to(root).as_posix() not in REGISTRIES:
        return []
    return [
        file for where in (path.parent, *map(Path, plugin_folders(path.parent.name))) for file in where.glob("*.py")
    ]


def _part(path: Path, root: Path) -> str:
    """The module or package directly under planer that a file belongs to; nothing for a script."""
    parts = path.relative_to(root).parts if path.is_relative_to(root) else (path.parent.name,)
    return parts[1].removesuffix(".py") if parts[0] == "planer" else ""


def _imported(module: str, name: str, root: Path) -> Iterator[Path]:
    """Files that count where a name, or with "" the module itself, is imported from a module."""
    if module.split(".")[0] != "planer":
        return
    if _file(f"{module}.{name}", root):
        module, name = f"{module}.{name}", ""
    for package in accumulate(module.split("."), "{}.{}".format):
        path = _file(package, root)
        if path and not (path.name == "__init__.py" and _only_exports(path.read_text())):
            yield path
        elif path and package == module:
            yield from [path] if name in ("", "*") else _exported(path, name, root)


def _exported(package: Path, name: str, root: Path) -> Iterator[Path]:
    """Files that count where a name is imported from a package that only re-exports names."""
    for module, exported in _module(package, root)[1]:
        if exported == name:
            yield from _imported(module, exported, root)


def _file(module: str, root: Path) -> Path | None:
    """A module's file, or a package's ``__init__.py``."""
    stem = root.joinpath(*module.split("."))
    return next((file for file in (stem.with_suffix(".py"), stem / "__init__.py") if file.is_file()), None)


def _module(path: Path, root: Path) -> tuple[str, tuple[tuple[str, str], ...]]:
    """The code in a module that can change a result, and the (module, name) pairs that it imports.

    Raises UserError when the file is no Python, as a user's own block may be.
    """
    try:
        return _analysed(path.read_text(), _part(path, root) == VALUES and path.name != "__init__.py")
    except (SyntaxError, ValueError) as error:  # ValueError: wrong bytes
        raise UserError(f"{path} is no Python module: {one_line(error)}") from error


@cache
def _analysed(text: str, only_functions: bool) -> tuple[str, tuple[tuple[str, str], ...]]:
    tree = _Executed().visit(ast.parse(text))
    nodes = _functions(tree) if only_functions else [tree]
    used = _names(nodes) if only_functions else set()
    imports = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = [(alias.asname or alias.name.split(".")[0], alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found = [(alias.asname or alias.name, node.module or "", alias.name) for alias in node.names]
        else:
            continue
        imports += [(module, name) for local, module, name in found if local in used or not only_functions]
    return "".join(map(_canonical, nodes)), tuple(imports)


class _Executed(ast.NodeTransformer):
    """Drops docstrings and what only type checkers read."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if text else self.generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.If | None:
        types = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        return None if types else self.generic_visit(node)


def _functions(tree: ast.Module) -> list[ast.stmt]:
    """A module's functions and methods, without checks of values, and the constants that they use."""
    kept = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name != "__post_init__"]
    for node in reversed(tree.body):  # a constant may use one above it
        if isinstance(node, ast.Assign) and _names(kept).intersection(_names(node.targets)):
            kept.append(node)
    return kept


def _names(nodes: list[ast.AST]) -> set[str]:
    return {name.id for node in nodes for name in ast.walk(node) if isinstance(name, ast.Name)}


@cache
def _only_exports(text: str) -> bool:
    """Whether a package's ``__init__.py`` does nothing but import names."""
    nodes = _Executed().visit(ast.parse(text)).body
    return all(
        isinstance(node, (ast.Import, ast.ImportFrom))
        or (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__")
        for node in nodes
    )


def _canonical(value: object) -> str:
    """A syntax tree as text that is the same for every version of Python."""
    if isinstance(value, list):
        return f"[{','.join(map(_canonical, value))}]"
    if not isinstance(value, ast.AST):
        return repr(value)
    fields = ((name, field) for name, field in ast.iter_fields(value) if field is not None and field != [])
    return f"{type(value).__name__}({','.join(f'{name}={_canonical(field)}' for name, field in fields)})"
