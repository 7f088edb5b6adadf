"""Environment variables of a workflow and its jobs.

Snakemake passes its own environment on to every job, so one call while the Snakefile is read sets them for all.
"""

from __future__ import annotations

import getpass
import os
from pathlib import Path

SPINS = "3000"
"""How often libgomp's threads look for work before they sleep.  With the default they spin very long, and everything is
slow on a busy machine (benchmarks/waiting.py)."""


def prepare_environment(root: Path, home: str | Path) -> None:
    """Set the home folder, the user's name, the library of this checkout, and the spinning of waiting threads.

    root: the checkout.  home: the home folder for users without one.  What the user has set about threads stays.  All
    jobs wait the same way, so that their latencies are comparable.
    """
    provide_home(home)
    # Scripts look among installed packages first.  A copy of planer there is not the code whose hash decides on reruns.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)


def provide_home(folder: str | Path) -> None:
    """Make folder the home of this process and of those that it starts, unless there is a home that it may write in.

    Matplotlib, PyTorch, Triton and MLflow keep caches in the home folder; Snakemake and PyTorch ask for the user's
    name.  A user without a name is called by the user's number, as in a container that runs under any number.
    """
    home = os.path.expanduser("~")
    if not os.path.isabs(home) or not os.access(home, os.W_OK | os.X_OK):
        os.environ["HOME"] = str(Path(folder).resolve())
        Path(folder).mkdir(parents=True, exist_ok=True)
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["USER"] = str(os.getuid())
