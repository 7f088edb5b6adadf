"""The kernels in Triton's interpreter, in a process of its own: tests/kernels/interpreted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

FOLDER = Path(__file__).parent / "interpreted"


def test_kernels_in_the_interpreter():
    arguments = ["-q", "-p", "no:cacheprovider", "-p", "no:randomly", "--durations=5", str(FOLDER)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments],
        cwd=FOLDER.parents[2],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"python -m pytest {' '.join(arguments)}\n{done.stdout}\n{done.stderr}"
