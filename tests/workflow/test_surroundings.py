"""The workflow runs without a home folder and with another copy of planer on PYTHONPATH."""

from __future__ import annotations

import sys

import pytest

pytestmark = pytest.mark.workflow


def test_no_home_and_another_copy_of_planer(workspace, tmp_path):
    other = tmp_path / "packages/planer/__init__.py"
    other.parent.mkdir(parents=True)
    other.write_text("raise SystemExit('the other copy was imported')")
    workspace.python = sys.executable  # not the preloaded one
    result = workspace.run(
        "results/data/pysource/manifest.json",
        HOME="/dev/null/home",
        PYTHONPATH=str(other.parents[1]),
    )
    assert result.returncode == 0, result.stdout
    assert (workspace.folder / "scratch/home").is_dir()
