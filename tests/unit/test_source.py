"""The hash of a stage's code changes if and only if its result can change."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from planer.workflow.source import REGISTRIES, Sources, source_hashes

FILES = {
    "workflow/scripts/train.py": "from planer.model import Model\nfrom planer.settings import seed\n",
    "workflow/scripts/other.json": "{}",
    "planer/model.py": "def build():\n    from planer.kernels import choice\n",
    "planer/unused.py": "",
    "planer/kernels/__init__.py": "",
    "planer/kernels/choice.py": "import planer.kernels.tables\n",
    "planer/kernels/tables/__init__.py": "",
    "planer/kernels/tables/cpu.json": "{}",
    "planer/kernels/cpp/__init__.py": "",
    "planer/kernels/cpp/kernel.cpp": "",
    "planer/settings/__init__.py": "from planer.settings.seeds import seed\nfrom planer.settings.other import x\n",
    "planer/settings/seeds.py": "def seed(): ...\n",
    "planer/settings/other.py": "x = 1\n",
    "planer/progress.py": "",
}
UNREACHED = [
    "workflow/scripts/other.json",
    "planer/unused.py",
    "planer/kernels/cpp/__init__.py",
    "planer/kernels/cpp/kernel.cpp",
    "planer/settings/other.py",
    "planer/progress.py",
]
NETWORKS = {
    "check_additivity",
    "choose",
    "cluster_experts",
    "compare",
    "evaluate",
    "export",
    "profile_blocks",
    "replace_projections",
    "retrain",
    "search",
    "sparsify",
    "teacher",
    "train_routers",
}
"""Scripts that run networks or draw their measurements."""


@pytest.fixture
def small(tmp_path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize("file", [name for name in FILES if not name.endswith("settings/__init__.py")])
def test_only_edits_of_reached_files_change_the_hash(small, file):
    script = small / "workflow/scripts/train.py"
    before = Sources(small).hash_of(script)
    (small / file).write_text(FILES[file] + "\nedited = 1\n")
    assert (Sources(small).hash_of(script) != before) == (file not in UNREACHED)


def test_a_module_of_a_registry_reaches_all_of_it(small):
    script, other = small / "workflow/scripts/train.py", small / "planer/heads/other.py"
    for name in ("softmax", "other"):
        (small / "planer/heads").mkdir(exist_ok=True)
        (small / f"planer/heads/{name}.py").write_text("x = 1\n")
    assert other not in Sources(small).reached(script)
    script.write_text(script.read_text() + "from planer.heads.softmax import x\n")
    assert other in Sources(small).reached(script)


def test_a_package_with_more_than_imports_is_reached(small):
    script, package = small / "workflow/scripts/train.py", small / "planer/settings/__init__.py"
    before = Sources(small).hash_of(script)
    package.write_text(package.read_text() + "from planer.settings.other import y\n__all__ = []\n")
    assert Sources(small).hash_of(script) == before
    package.write_text(package.read_text() + "print(x)\n")
    assert {package, small / "planer/settings/other.py"} <= Sources(small).reached(script)


COMMENTED = '''"""A module."""
from typing import TYPE_CHECKING

from planer.kernels import choice  # fast

if TYPE_CHECKING:
    import planer.unused


def build():
    """It builds."""
    return (1 +
        choice)
'''
PLAIN = """from typing import TYPE_CHECKING
from planer.kernels import choice
def build(): return 1 + choice
"""


@pytest.mark.parametrize("cache", ["", "{}", '{"damaged": [], "checksum": "no"}'])
def test_the_cache_changes_no_hash(small, tmp_path, monkeypatch, cache):
    file, module = tmp_path / "cache/file.json", small / "planer/model.py"
    before = source_hashes(small, file)
    file.write_text(cache)
    assert source_hashes(small, file) == before
    with monkeypatch.context() as patched:
        patched.setattr(ast, "parse", None)
        assert source_hashes(small, file) == before, "no file is parsed twice"
    module.write_text(FILES["planer/model.py"] + "\nedited = 1\n")
    assert source_hashes(small, file) != before
    module.write_text(FILES["planer/model.py"])
    assert source_hashes(small, tmp_path / "cache/file.json/no folder") == before


def test_comments_docstrings_layout_and_type_imports_change_no_hash(small):
    script, module = small / "workflow/scripts/train.py", small / "planer/model.py"
    hashes = []
    for text in (COMMENTED, PLAIN, PLAIN.replace("1", "2")):
        module.write_text(text)
        assert small / "planer/unused.py" not in Sources(small).reached(script)
        hashes.append(Sources(small).hash_of(script))
    assert hashes[0] == hashes[1] != hashes[2]


def hashes(root: Path) -> dict[str, str]:
    return {name.removesuffix(".py"): value for name, value in source_hashes(root, root / "cache.json").items()}


@pytest.fixture(scope="module")
def changed(pytestconfig, tmp_path_factory) -> Callable[[str, str, str], set[str]]:
    """A function that edits a file of a copy of the library and returns the scripts whose hashes change."""
    root = tmp_path_factory.mktemp("tree")
    for name in ("planer", "workflow/scripts"):
        shutil.copytree(pytestconfig.rootpath / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    before = hashes(root)

    def edit(file: str, old: str, new: str) -> set[str]:
        path = root / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))
        after = hashes(root)
        path.write_text(text)
        return {name for name in before if before[name] != after[name]}

    return edit


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("config/corpora.yaml", "corpora:\n", "corpora:\n  news: {vocab_size: 99, unit: byte}\n"),
        ("config/evaluation.py", "latency_rounds: Rounds", "tolerance: Share"),
        ("config/evaluation.py", "if variant.repeat", "if not variant.repeat"),
        ("config/bounds.py", "100_000_000", "200_000_000"),
        ("config/experiment.py", "max_hours: Annotated", "max_days: Annotated"),
        ("parsing.py", "def merge", "def merged"),
        ("progress.py", "LINE_SECONDS = ", "LINE_SECONDS = 2 * "),
        ("workflow/job.py", "import os", "import os, ast"),
    ],
)
def test_an_edit_that_changes_no_result_changes_no_hash(changed, file, old, new):
    assert changed(f"planer/{file}", old, new) == set()


@pytest.mark.parametrize(
    ("file", "old", "new", "expected"),
    [
        ("planer/blocks/attention.py", "import torch", "import torch as t, torch", NETWORKS),
        ("planer/kernels/expert_ffn/cpu-avx512.json", "{", "{ ", NETWORKS),
        (
            "planer/training/parent_start.py",
            "import torch",
            "import torch as t, torch",
            {"choose", "retrain", "search"},
        ),
        ("planer/report/report.html.jinja", "<h2>", "<h3>", {"compare", "pareto"}),
        ("planer/data/prepare.py", "len(text) // 20", "len(text) // 10", {"prepare_data"}),
        ("planer/evaluation/quality.py", "import numpy", "import ast, numpy", {"evaluate"}),
        (
            "planer/config/evaluation.py",
            'f"target_{spelled(target)}"',
            '"x"',
            {"pareto", "repeatability", "evaluate", "compare"},
        ),
        ("planer/seed.py", ">> 1", ">> 2", NETWORKS | {"estimate_cost", "pareto", "pattern"}),
        ("workflow/scripts/search.py", "import", "import ast\nimport", {"search"}),
    ],
)
def test_an_edit_changes_the_hashes_of_stages_that_reach_it(changed, file, old, new, expected):
    assert {name for name in changed(file, old, new) if not name.startswith("pretrained/")} == expected


def test_an_edit_of_a_pretrained_task_changes_only_stages_of_pretrained_networks(changed):
    repeated = changed("planer/data/epochs.py", "POOL = 32", "POOL = 64")
    assert "pretrained/finetune" in repeated and "pretrained/prepare_model" not in repeated
    assert all(name.startswith("pretrained/") for name in repeated)


def test_checks_of_the_config_set_no_attributes(pytestconfig):
    """Checks are left out of the hashes."""
    for path in (pytestconfig.rootpath / "planer/config").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name == "__post_init__":
                assert "__setattr__" not in ast.unparse(node)


def test_no_import_is_relative_or_computed(pytestconfig):
    """Such imports are not followed.  The modules of registries count without imports."""
    for path in (pytestconfig.rootpath / "planer").rglob("*.py"):
        if path.parent.relative_to(pytestconfig.rootpath).as_posix() in REGISTRIES:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.ImportFrom) and node.level), path
            assert not (isinstance(node, ast.Name) and node.id in ("import_module", "__import__")), path
