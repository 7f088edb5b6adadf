"""Kill a training run in the middle."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path


class KillAt(list):
    """A list of history rows that kills its process when the row of ``step`` is appended."""

    def __init__(self, step: int):
        super().__init__()
        self.step = step

    def append(self, row: dict) -> None:
        if row["step"] == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def kill_at(step: int, run: Callable, folder: Path) -> None:
    """Call run(folder, rows=...) in a new process, which is killed when it reports the history row of ``step``.

    run: a function of a test module that appends every row of its history to ``rows``.
    """
    process = multiprocessing.get_context("spawn").Process(target=run, args=(folder,), kwargs={"rows": KillAt(step)})
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
