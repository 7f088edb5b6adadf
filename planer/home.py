"""A home folder and a user's name for processes that have none, as in a container that runs under any user's number.

Matplotlib, PyTorch, Triton and MLflow keep caches in the home folder; Snakemake and PyTorch ask for the user's name.
"""

from __future__ import annotations

import getpass
import os
from pathlib import Path


def provide_home(folder: str | Path) -> None:
    """Make folder the home of this process and of those that it starts, unless there is a home that it may write in.

    A user without a name is called by the user's number.
    """
    home = os.path.expanduser("~")
    if not os.path.isabs(home) or not os.access(home, os.W_OK | os.X_OK):
        os.environ["HOME"] = str(Path(folder).resolve())
        Path(folder).mkdir(parents=True, exist_ok=True)
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["USER"] = str(os.getuid())
