"""tests/kernels/interpreted in a process with Triton's interpreter, and the kernels without Triton."""

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


def test_the_other_backends_work_without_triton():
    code = (
        "import sys; sys.modules['triton'] = None; import torch;"
        "from planer.kernels import dynamic_ffn, expert_ffn, routing;"
        "x, w, b = torch.ones(3, 4), torch.ones(2, 4, 4), torch.ones(2, 4);"
        "pairs, _, plan = routing.route(x, b, 1, False);"
        "assert expert_ffn.expert_ffn(x, w, b, w, b, pairs, plan=plan).shape == (3, 4);"
        "assert dynamic_ffn.dynamic_ffn(x, w[0], b[0], w[0], b[0], torch.ones(3, 2) > 0).shape == (3, 4)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=FOLDER.parents[2], check=True)
