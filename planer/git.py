"""Which commit of the code runs."""

from __future__ import annotations

import subprocess
from pathlib import Path


def git_commit() -> str:
    """Commit of the code that runs, with -dirty when files differ from it; unknown outside of its own repository.

    A copy without a repository may lie in the folder of another one, whose commit says nothing about it.
    """
    root = Path(__file__).resolve().parents[1]
    try:
        if Path(_git(root, "rev-parse", "--show-toplevel")).resolve() != root:
            return "unknown"
        return _git(root, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _git(folder: Path, *arguments: str) -> str:
    """What git prints in a folder.  Raises OSError without git, SubprocessError when it fails or hangs."""
    command = ["git", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
