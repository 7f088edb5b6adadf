"""The code that a stage's result depends on: its script, the modules that it imports, and the data beside them.

Snakemake's own trigger checks the date and text of a script, not the library that it calls.  A hash in the params of a
rule checks both.  A fresh clone repeats nothing.  An edited module repeats exactly the stages that import it, directly
or not.

Code that cannot change a result does not count:

- comments, docstrings and layout, and imports for annotations (``if TYPE_CHECKING``);
- modules that log, mirror, report progress or convert a configuration (CHANGES_NO_RESULT);
- what planer/config holds and checks: the values that a stage reads are among its params.  Its functions count;
- packages that only re-export names: ``from planer.config import SearchConfig`` reaches planer/config/search.py alone.

Imports that are computed at run time are not seen, but for registries (REGISTRIES).
"""

from __future__ import annotations

import ast
import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from itertools import accumulate
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from planer.errors import UserError
from planer.files import one_line, read_json, write_json
from planer.specs.plugins import plugin_folders

CHANGES_NO_RESULT = ("__init__", "errors", "git", "parsing", "progress", "workflow")
"""Modules and packages of planer whose edits repeat nothing."""
REGISTRIES = ("planer/blocks", "planer/heads", "planer/pretrained/adapters", "planer/specs")
"""Folders whose modules are found by their files: who reaches one of them reaches all, a user's own blocks too."""
VALUES = "config"
"""The package whose fields and checks repeat nothing."""
PACKAGE = "__init__.py"
DATA = (".cpp", ".h", ".jinja", ".json")
"""Files in a module's folder that belong to it: kernels in C++, the report's template, and tables of the fastest
kernels, between which the last bits of results differ, and measured latencies by more."""


def source_hashes(root: Path, cache_file: Path) -> dict[str, str]:
    """Hashes of the scripts of all rules, by the scripts' paths in their folder; root is the repository's folder.

    cache_file keeps the analysis of every module by its text, which takes a second.  Without write access there is
    none.
    """
    known = {}
    with suppress(UserError):
        known = read_json(cache_file)
    sources = Sources(root, known)
    folder = root / "workflow/scripts"
    hashes = {path.relative_to(folder).as_posix(): sources.hash_of(path) for path in folder.rglob("*.py")}
    if not sources.analysed.keys() <= known.keys():
        with suppress(UserError):
            write_json(cache_file, sources.analysed)
    return hashes


class Sources:
    """The code of a checkout.  Every file is read once: later edits are not seen.

    Inside, files are absolute paths as text: thousands of look-ups are several times as fast as with Path.
    """

    def __init__(self, root: Path, known: Mapping[str, list] = MappingProxyType({})):
        """root: the repository's folder; known: what ``analysed`` was in an earlier process."""
        self._root, self._known = str(root), known
        self._library = {os.path.join(folder, file) for folder, _, files in os.walk(root / "planer") for file in files}
        self.analysed: dict[str, list] = {}
        """The fields of Module by a hash of the module's text."""
        self._name, self._module, self._imported = map(cache, (self._find_name, self._read_module, self._find_imported))
        self._file, self._next, self._data = map(cache, (self._find_file, self._find_next, self._find_data))
        self._line, self._part = cache(self._describe), cache(self._find_part)

    def hash_of(self, script: Path) -> str:
        """Hash of a script's code and of all that it reaches in planer."""
        lines = sorted(map(self._line, self._reached(str(script))))
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]

    def reached(self, script: Path) -> set[Path]:
        """The script, the modules of planer that it imports, directly or not, and the data beside these modules."""
        return set(map(Path, self._reached(str(script))))

    def _reached(self, script: str) -> set[str]:
        waiting, reached = {script}, set()
        while waiting:
            path = waiting.pop()
            reached.add(path)
            waiting |= self._next(path) - reached
        folders = {os.path.dirname(path) for path in reached - {script}}
        return reached.union(*map(self._data, folders))

    def _describe(self, path: str) -> str:
        """What a hash has of a file: its name and the hash of what counts of it."""
        code = self._data(os.path.dirname(path))[path] if path.endswith(DATA) else self._module(path).code
        return f"{self._name(path)} {code}"

    def _find_next(self, path: str) -> frozenset[str]:
        """What counts of a file's imports, and all modules of the registry that it belongs to."""
        files = [file for name in self._module(path).imports for file in self._imported(*name)]
        if os.path.dirname(self._name(path)) in REGISTRIES:
            folder = os.path.dirname(path)
            folders = (folder, *plugin_folders(os.path.basename(folder)))
            files += [str(file) for folder in folders for file in Path(folder).glob("*.py")]
        return frozenset(file for file in files if self._part(file) not in CHANGES_NO_RESULT)

    def _find_data(self, folder: str) -> dict[str, str]:
        """Hashes of the data files in a folder."""
        files = [os.path.join(folder, name) for name in os.listdir(folder) if name.endswith(DATA)]
        return {path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in files}

    def _find_name(self, path: str) -> str:
        """A file's path in the repository; of a user's own block, the folder and the file."""
        inside = path.startswith(self._root + os.sep)
        return os.path.relpath(path, self._root if inside else os.path.dirname(os.path.dirname(path)))

    def _find_part(self, path: str) -> str:
        """The module or package directly under planer that a file belongs to; nothing for a script."""
        parts = self._name(path).split(os.sep)
        return parts[1].removesuffix(".py") if parts[0] == "planer" else ""

    def _find_imported(self, module: str, name: str) -> list[str]:
        """Files that count where a name, or with "" the module itself, is imported from a module."""
        if module.split(".")[0] != "planer":
            return []
        if self._file(f"{module}.{name}"):
            module, name = f"{module}.{name}", ""
        files = []
        for package in accumulate(module.split("."), "{}.{}".format):
            path = self._file(package)
            if path and not (_is_package(path) and self._module(path).only_exports):
                files.append(path)
            elif path and package == module:
                files += [path] if name in ("", "*") else self._exported(path, name)
        return files

    def _exported(self, package: str, name: str) -> list[str]:
        """Files that count where a name is imported from a package that only re-exports names."""
        imports = self._module(package).imports
        return [file for module, exported in imports if exported == name for file in self._imported(module, exported)]

    def _find_file(self, module: str) -> str | None:
        """A module's file, or a package's ``__init__.py``."""
        stem = os.path.join(self._root, *module.split("."))
        return next((file for file in (f"{stem}.py", os.path.join(stem, PACKAGE)) if file in self._library), None)

    def _read_module(self, path: str) -> Module:
        """Raises UserError when the file is no Python, as a user's own block may be."""
        only_functions = self._part(path) == VALUES and not _is_package(path)
        try:
            text = Path(path).read_text()
            key = hashlib.sha256(f"{_ANALYSIS}{only_functions}{text}".encode()).hexdigest()
            self.analysed[key] = self._known.get(key) or _analysed(text, only_functions)
        except (SyntaxError, ValueError) as error:  # ValueError: wrong bytes
            raise UserError(f"{path} is no Python module: {one_line(error)}") from error
        code, imports, only_exports = self.analysed[key]
        return Module(code, tuple(map(tuple, imports)), only_exports)


def _is_package(path: str) -> bool:
    return os.path.basename(path) == PACKAGE


class Module(NamedTuple):
    """The parts of a module that count."""

    code: str
    """Hash of the code that can change a result."""
    imports: tuple[tuple[str, str], ...]
    """Modules and names that it imports from them."""
    only_exports: bool
    """Whether it does nothing but import names."""


_ANALYSIS = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
"""An analysis that is kept holds for this text of the module that you read."""


def _analysed(text: str, only_functions: bool) -> list:
    """The fields of Module, as JSON has them."""
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
        imports += [[module, name] for local, module, name in found if local in used or not only_functions]
    code = "".join(map(_canonical, nodes))
    return [hashlib.sha256(code.encode()).hexdigest(), imports, _only_exports(tree)]


class _Executed(ast.NodeTransformer):
    """Drops docstrings and code for type checkers."""

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


def _only_exports(tree: ast.Module) -> bool:
    """Whether a package's ``__init__.py`` does nothing but import names."""
    return all(
        isinstance(node, (ast.Import, ast.ImportFrom))
        or (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__")
        for node in tree.body
    )


def _canonical(value: object) -> str:
    """A syntax tree as text that is the same for every version of Python."""
    if isinstance(value, list):
        return f"[{','.join(map(_canonical, value))}]"
    if not isinstance(value, ast.AST):
        return repr(value)
    fields = ((name, field) for name, field in ast.iter_fields(value) if field is not None and field != [])
    return f"{type(value).__name__}({','.join(f'{name}={_canonical(field)}' for name, field in fields)})"
