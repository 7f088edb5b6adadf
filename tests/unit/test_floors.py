"""The packages of planer are ordered in floors: a module imports only from its own floor and lower ones."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PLANER = Path(__file__).parents[2] / "planer"
FLOORS = (
    "heads",
    "specs",
    "config",
    "kernels",
    "blocks",
    "models",
    "pretrained",
    "data",
    "tasks",
    "training",
    "latency",
    "search",
    "conversion",
    "evaluation",
    "report",
    "workflow",
    "serving",
)
"""From the lowest to the highest."""
GROUND = ("errors", "files", "git", "initial", "measure", "paired", "parsing", "progress", "runtime", "seed", "tensors")
"""Modules below all floors, which import only each other.  The command line is above all floors."""


def imported(path: Path) -> set[str]:
    """The modules and packages directly below planer that a file imports, anywhere in the file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "planer":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module.split(".")[1]} if node.module.startswith("planer.") else set()
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("planer.")}
    return names


def modules(name: str) -> list[Path]:
    file = PLANER / f"{name}.py"
    return [file] if file.exists() else sorted((PLANER / name).rglob("*.py"))


@pytest.mark.parametrize("height", range(len(FLOORS)), ids=FLOORS)
def test_a_floor_imports_only_downwards(height):
    files = modules(FLOORS[height])
    assert files
    for path in files:
        assert imported(path) <= {*FLOORS[: height + 1], *GROUND}, path


@pytest.mark.parametrize("name", GROUND)
def test_ground_modules_import_no_floor(name):
    (path,) = modules(name)
    assert imported(path) <= set(GROUND)


def test_rules_import_no_torch():
    """With torch, a dry run takes seconds longer."""
    floors = [path for name in ("specs", "config", "workflow") for path in modules(name) if "__" not in path.stem]
    names = [".".join(path.relative_to(PLANER.parent).with_suffix("").parts) for path in floors]
    rules = "\n".join(path.read_text() for path in (PLANER.parent / "rules").glob("*.smk"))
    names += re.findall(r"^from (planer[\w.]*) import", rules, re.MULTILINE)
    code = f"import sys\nfor name in {names}: assert not __import__(name) or 'torch' not in sys.modules, name"
    subprocess.run([sys.executable, "-c", code], cwd=PLANER.parent, check=True)


def test_every_module_has_a_floor():
    names = {path.stem for path in PLANER.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert names - {"__init__", "__main__"} == {*FLOORS, *GROUND}


def test_only_specifications_and_modules_of_blocks_check_their_types():
    """All other code asks the specification, without isinstance."""
    folders = [PLANER / "specs", PLANER / "blocks"]
    trees = [ast.parse(path.read_text()) for folder in folders for path in folder.glob("*.py")]
    kinds = {node.name for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)} - {"Architecture"}
    for path in PLANER.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())) if path.parent not in folders else ():
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
                asked = {name.split(".")[-1] for name in re.findall(r"[\w.]+", ast.unparse(node.args[1]))}
                assert not asked & kinds, (path, ast.unparse(node))


def test_only_pretrained_networks_and_two_hubs_import_transformers():
    """The GPU environment has no transformers."""
    for path in PLANER.rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
        allowed = "pretrained" in path.parts or path in (PLANER / "models/hub.py", PLANER / "conversion/hub.py")
        assert allowed or "transformers" not in {name.split(".")[0] for name in names}, path
