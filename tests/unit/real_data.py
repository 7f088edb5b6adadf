"""Real corpora in $PLANER_DATA, or in shared/data in the parent folder of the repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def real(name: str) -> Path:
    """Path of a real data file; skips the test if no folder has it."""
    folders = [Path(__file__).parents[3] / "shared" / "data"]
    if given := os.environ.get("PLANER_DATA"):
        folders.insert(0, Path(given))
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    pytest.skip(f"no {name} in {' or '.join(map(str, folders))}; set PLANER_DATA to the folder that has it")
