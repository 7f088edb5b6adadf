"""The hash of a stage's code changes with everything that it reaches and with nothing else."""

from __future__ import annotations

import pytest

from planer.source import source_hash

FILES = {
    "workflow/scripts/train.py": "from planer.model import Model\n",
    "workflow/scripts/other.json": "{}",
    "planer/model.py": "def build():\n    from planer.kernels import choice\n",
    "planer/unused.py": "",
    "planer/kernels/__init__.py": "",
    "planer/kernels/choice.py": "import planer.kernels.tables\n",
    "planer/kernels/tables/__init__.py": "",
    "planer/kernels/tables/cpu.json": "{}",
    "planer/kernels/cpp/__init__.py": "",
    "planer/kernels/cpp/kernel.cpp": "",
}
UNREACHED = [
    "workflow/scripts/other.json",
    "planer/unused.py",
    "planer/kernels/cpp/__init__.py",
    "planer/kernels/cpp/kernel.cpp",
]


@pytest.mark.parametrize("file", FILES)
def test_edits(tmp_path, file):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    script = tmp_path / "workflow/scripts/train.py"
    before = source_hash(script, tmp_path)
    (tmp_path / file).write_text(FILES[file] + "\n# edited\n")
    assert (source_hash(script, tmp_path) != before) == (file not in UNREACHED)


def test_kernels_and_their_tables_are_reached(pytestconfig):
    root = pytestconfig.rootpath
    from planer.source import imported_files

    kernels = root / "planer/kernels"
    reached, waiting = set(), [kernels / "expert_ffn.py", kernels / "dynamic_ffn.py"]
    while waiting:
        path = waiting.pop()
        if path not in reached:
            reached.add(path)
            waiting += imported_files(path, root)
    assert {kernels / "cpp", kernels / "tables", kernels / "triton"} <= {path.parent for path in reached}
