"""Modules have at most 400 lines, functions 60 lines and 7 parameters."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODULE_LINES, FUNCTION_LINES, PARAMETERS = 400, 60, 7
TRITON = "Triton kernels and their launchers take sizes and strides as single parameters"
OPERATOR = "operators of torch.library and their callers have flat signatures"
EXCEPTIONS = {
    "planer/kernels/triton/": TRITON,
    "planer/kernels/routing/triton/": TRITON,
    "planer/kernels/expert_ffn/triton/": TRITON,
    "planer/kernels/dynamic_ffn/triton/": TRITON,
    "planer/kernels/expert_ffn/function.py": OPERATOR,
    "planer/kernels/dynamic_ffn/function.py": OPERATOR,
    "planer/kernels/neuron_threshold/": OPERATOR,
}
"""Modules whose functions may be larger, and the reason."""


def modules() -> Iterator[tuple[str, str]]:
    """Path and text of every module."""
    for path in sorted((ROOT / "planer").rglob("*.py")):
        yield path.relative_to(ROOT).as_posix(), path.read_text()


def functions(text: str) -> Iterator[tuple[str, int, int]]:
    """Name, lines and parameters (without self) of every function."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            given = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            yield node.name, node.end_lineno - node.lineno + 1, len([name for name in given if name not in SELF])


SELF = ("self", "cls", "ctx")


def large(text: str) -> list[str]:
    """Functions over a limit."""
    found = functions(text)
    return [f"{name}: {n} lines, {p} parameters" for name, n, p in found if n > FUNCTION_LINES or p > PARAMETERS]


def test_modules_are_short():
    assert [path for path, text in modules() if len(text.splitlines()) > MODULE_LINES] == []


def test_functions_are_short_and_take_few_parameters():
    found = {path: large(text) for path, text in modules() if not path.startswith(tuple(EXCEPTIONS))}
    assert {path: names for path, names in found.items() if names} == {}


def test_every_exception_is_needed():
    found = [path for path, text in modules() if large(text)]
    assert [exception for exception in EXCEPTIONS if not any(path.startswith(exception) for path in found)] == []


def test_large_functions_are_found():
    body = "\n    ".join(["pass"] * FUNCTION_LINES)
    assert large(f"def f(self, a, b, c, d, *, e, f, g, **more):\n    {body[:-9]}") == []
    assert large("def f(a, b, c, d, /, e, f, *, g, h): ...") == ["f: 1 lines, 8 parameters"]
    assert large(f"def f():\n    {body}") == ["f: 61 lines, 0 parameters"]
