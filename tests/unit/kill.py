"""Kill a training run in the middle, as a power cut or a scheduler would."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path


class KillAt(list):
    """History rows that end the process with SIGKILL once the row of ``step`` is in."""

    def __init__(self, step: int):
        super().__init__()
        self.step = step

    def append(self, row: dict) -> None:
        """Take a row."""
        if row["step"] == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def kill_at(step: int, run: Callable, folder: Path) -> None:
    """Call run(folder, rows=...) in a process of its own that is killed when it reports the history row of ``step``.

    run: a function of a test module that appends every row of its history to ``rows``.
    """
    process = multiprocessing.get_context("spawn").Process(target=run, args=(folder,), kwargs={"rows": KillAt(step)})
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
