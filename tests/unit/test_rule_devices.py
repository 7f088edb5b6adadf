"""Rules request a GPU if and only if their scripts resolve the experiment's device."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest

from planer.workflow.resources import ON_CPU

ROOT = Path(__file__).parents[2]
RULES = {
    match[1]: match[2]
    for path in sorted((ROOT / "rules").glob("*.smk"))
    for match in re.finditer(r"^rule (\w+):\n((?:    .*\n|\n)+)", path.read_text(), re.MULTILINE)
}
"""Text of every rule by its name."""


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def names_of(path: Path) -> dict[str, tuple[Path, str | None]]:
    """The file and the definition that each name of a module refers to; None: the whole file."""
    found = {}
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "planer":
            folder = ROOT.joinpath(*node.module.split("."))
            for alias in node.names:
                file = folder / f"{alias.name}.py"
                inside = folder.with_suffix(".py") if folder.with_suffix(".py").exists() else folder / "__init__.py"
                found[alias.asname or alias.name] = (file, None) if file.exists() else (inside, alias.name)
    for node in parse(path).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = path, node.name
    return found


def definition(path: Path, name: str) -> ast.AST | None:
    """A function, class or method (Class.method) of a file, or None."""
    node: ast.AST | None = parse(path)
    for part in name.split("."):
        body = getattr(node, "body", [])
        node = next((n for n in body if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name == part), None)
    return node


def resolves_device(script: Path) -> bool:
    """Whether a script calls resolve_device(config.device), directly or through planer.

    Of Job only the called methods count; of other classes all methods.
    """
    waiting: list[tuple[Path, ast.AST]] = [(script, parse(script))]
    seen = {(ROOT / "planer/workflow/job.py", "Job")}
    while waiting:
        path, tree = waiting.pop()
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "resolve_device":
                (argument,) = node.args
                if isinstance(argument, ast.Attribute) and argument.attr == "device":
                    return True
            file, name = names_of(path).get(getattr(node, "id", ""), (None, None))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                file, _ = names_of(path).get(node.value.id, (None, None))
                name = node.attr
                if node.value.id == ("self" if path.name == "job.py" else "job"):  # ``with stage(snakemake) as job``
                    file, name = ROOT / "planer/workflow/job.py", f"Job.{node.attr}"
            if file and name and (file, name) not in seen:
                seen.add((file, name))
                if found := definition(file, name):
                    waiting.append((file, found))
    return False


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_requests_a_gpu_if_its_script_resolves_a_device(rule):
    script = re.search(r'"\.\./workflow/scripts/([\w/]+\.py)"', RULES[rule])[1]
    assert ("gpu=gpus," in RULES[rule]) == resolves_device(ROOT / "workflow/scripts" / script)


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_without_a_gpu_has_no_device(rule):
    """The job would resolve it for its record, and fail on a node without a GPU."""
    if "gpu=gpus," not in RULES[rule]:
        assert '"device"' not in RULES[rule] and "COMPUTE" not in RULES[rule]


def test_the_example_of_the_slurm_profile_has_all_rules_that_request_a_gpu():
    example = (ROOT / "profiles/slurm/profile.v9+.yaml").read_text().partition("# set-resources:\n")[2]
    assert set(re.findall(r"^#   (\w+): [&*]gpu$", example, re.MULTILINE)) == {
        rule for rule, text in RULES.items() if "gpu=gpus," in text
    }


@pytest.mark.parametrize("rule", RULES)
def test_memory_and_time_grow_in_every_attempt(rule):
    asked = re.findall(r"(?:mem_mb|runtime)=(.*),\n", RULES[rule])
    assert len(asked) == 2 and not any(value.isdecimal() for value in asked)


def test_trainings_of_pretrained_networks_get_more_time_in_every_attempt():
    rules = {"cache": cache, "settings": lambda experiment: {"max_hours": 2.0}}
    exec((ROOT / "rules/pretrained_inputs.smk").read_text(), rules)
    wildcards = SimpleNamespace(experiment="any")
    assert [rules["most_minutes"](wildcards, attempt) for attempt in (1, 2, 3)] == [180, 360, 540]


def test_memory_is_estimated_for_the_device_that_rules_request():
    estimated = {rule: text for rule, text in RULES.items() if "mem_mb=memory(" in text}
    assert {rule for rule, text in estimated.items() if "gpu=gpus," not in text} == {*ON_CPU}
