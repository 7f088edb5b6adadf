"""The preloaded Python has the outputs and exit status of Python."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.workflow.preloaded import python

pytestmark = pytest.mark.workflow
SCRIPT = """
import atexit, os, sys
atexit.register(print, "at the end")
print(__name__, sys.argv[1:], os.getcwd(), os.environ["GIVEN"], sys.stdin.read(), flush=True)
print("said", file=sys.stderr)
{}
"""


def run(program: str, folder, *arguments) -> tuple[int, str, list[str]]:
    """Exit status, standard output and the last line of standard error."""
    done = subprocess.run(
        [program, *arguments],
        cwd=folder,
        env=os.environ | {"GIVEN": "x"},
        input="typed",
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout, done.stderr.splitlines()[-1:]


@pytest.mark.parametrize(
    "end", ["", "sys.exit(65)", "sys.exit('one line')", "1 / 0", "os.kill(os.getpid(), 9)"],
    ids=["end", "status", "message", "exception", "signal"],
)  # fmt: skip
def test_a_script_and_a_module_run_as_in_python(tmp_path, end):
    (tmp_path / "own.py").write_text(SCRIPT.format(end))
    assert run(python(), tmp_path, "own.py", "a", "b") == run(sys.executable, tmp_path, "own.py", "a", "b")
    assert run(python(), tmp_path, "-m", "platform") == run(sys.executable, tmp_path, "-m", "platform")
