"""What a stage's result depends on in the code: its script and every module of the library that the script reaches,
C++ sources and tables beside a module included.

Snakemake's own trigger looks at the date and text of a script and never at the library behind it.  A hash of the
sources among the params of a rule does both: a fresh clone repeats nothing, and an edited module repeats the stages
that import it, directly or not, and no others.
"""

from __future__ import annotations

import ast
import hashlib
import subprocess
from pathlib import Path

CHANGES_NO_RESULT = ("job.py", "tracking.py", "mirror.py")
"""Logging and the mirror in MLflow: an edit there repeats nothing."""


DATA = (".cpp", ".json")
"""Files in a module's folder that belong to it: kernels in C++, and tables of the fastest kernels, between which the
last bits of results differ, and measured latencies by more."""


def source_hash(script: Path, root: Path) -> str:
    """Hash of the text of a script and of the planer modules that it imports; root is the repository's folder."""
    waiting, reached = [script], set()
    while waiting:
        path = waiting.pop()
        if path not in reached and path.name not in CHANGES_NO_RESULT:
            reached.add(path)
            waiting += imported_files(path, root)
    folders = {path.parent for path in reached - {script}}
    reached.update(path for folder in folders for path in folder.iterdir() if path.suffix in DATA)
    digest = hashlib.sha256()
    for path in sorted(reached):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def imported_files(path: Path, root: Path) -> list[Path]:
    """Source files of planer that a Python file names in its import statements, wherever they stand."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    stems = [root.joinpath(*name.split(".")) for name in names if name.split(".")[0] == "planer"]
    files = [file for stem in stems for file in (stem.with_suffix(".py"), stem / "__init__.py")]
    return [file for file in files if file.is_file()]


def git_commit() -> str:
    """Commit of the code that runs, with -dirty when files differ from it; unknown outside of a repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    folder = Path(__file__).parent
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()
