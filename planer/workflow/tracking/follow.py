"""The process beside a workflow that writes its jobs' records to MLflow, also those of jobs on other nodes.

The workflow's process starts it (``start``).  When all jobs have ended, it closes the standard input of this process
(``finish``), which therefore also ends when the workflow is killed.  Jobs do not wait for it.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from planer.workflow.tracking.address import database_of, store_uri
from planer.workflow.tracking.journal import FOLDER, journals
from planer.workflow.tracking.secrets import one_line, plain
from planer.workflow.tracking.store import opened
from planer.workflow.tracking.sync import sync

ROWS_SECONDS = 10
"""Between two looks at the rows of running jobs."""
LOOK_SECONDS = 1
"""Between two looks for ended jobs: their records are mirrored before another job measures latencies."""
END_SECONDS = 60
"""Longest wait of a workflow at its end, for a slow server; one that does not answer costs twice REQUEST_SECONDS."""
ROOT = Path(__file__).resolve().parents[3]
_follower: subprocess.Popen | None = None


def start(results: str | Path) -> None:
    """Start the process.  Waits for it only when the store is not there yet: creating it takes seconds of CPU that
    would disturb the first measurements.  Raises UserError for an address of no store."""
    global _follower
    if os.environ.get("MLFLOW_TRACKING_URI") == "none":
        return
    database = database_of(store_uri(Path(results)))
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    try:
        _follower = subprocess.Popen(
            [sys.executable, "-P", "-m", "planer.workflow.tracking", "follow", str(results)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path},
        )
    except OSError as error:
        _warn(one_line(error), results)
        return
    if database and not database.exists():
        select.select([_follower.stdout], [], [], END_SECONDS)


def finish(results: str | Path) -> None:
    """Wait until the process has written everything to MLflow, and print what it could not in one line."""
    global _follower
    if _follower is None:
        return
    follower, _follower = _follower, None
    try:
        report, _ = follower.communicate(timeout=END_SECONDS + 5)
        trouble = report.decode(errors="replace").replace("\n", "", 1).strip()
        if follower.returncode == -signal.SIGALRM:
            trouble = f"not done within {END_SECONDS} s"
        elif follower.returncode:
            trouble = f"its process ended with status {follower.returncode}"
    except subprocess.TimeoutExpired:
        follower.kill()
        trouble = f"not done within {END_SECONDS} s"
    if trouble:
        _warn(trouble, results)


def _warn(trouble: str, results: str | Path) -> None:
    print(
        f"warning: MLflow does not have all runs yet ({trouble}); results are complete without it; "
        f"to try again: python -m planer.workflow.tracking sync {results}",
        file=sys.stderr,
    )


def follow(results: Path) -> None:
    """Mirror until standard input closes, and once more; write records that MLflow refused to standard output."""
    for number in (signal.SIGTERM, signal.SIGINT):  # meant for the workflow, whose end shows here anyway
        signal.signal(number, signal.SIG_IGN)
    report = os.dup(1)
    with open(os.devnull, "w") as nowhere:  # MLflow prints addresses of runs
        os.dup2(nowhere.fileno(), 1)
    gc.disable()  # while MLflow's modules are imported, to stay: 1.5 s of CPU instead of 2.0
    sizes = _sizes(results)
    trouble = _mirror(results, END_SECONDS)
    looked = time.monotonic()
    gc.enable()
    os.write(report, b"\n")  # the store is there
    while not select.select([sys.stdin], [], [], LOOK_SECONDS)[0]:
        now = _sizes(results)
        grown = [path for path, size in now.items() if size != sizes.get(path)]
        due = time.monotonic() - looked >= ROWS_SECONDS
        if grown and (due or (not trouble and any(map(_has_ended, grown)))):
            trouble = _mirror(results, 0)
            looked = time.monotonic()
            sizes = sizes if trouble else now  # such as a store that another workflow uses: again in ROWS_SECONDS
    signal.alarm(END_SECONDS)  # ends this process when the workflow is no longer there to do it
    os.write(report, _mirror(results, END_SECONDS).encode())


def _mirror(results: Path, seconds: float) -> str:
    """One sync, for which the store must be free within seconds; return the first trouble."""
    try:
        with opened(results, seconds) as store:
            troubles = sync(results, store).troubles
        more = f", and {len(troubles) - 1} more" if len(troubles) > 1 else ""
        return troubles[0] + more if troubles else ""
    except Exception as error:
        return plain(error)


def _sizes(results: Path) -> Mapping[Path, int]:
    """Journals and their bytes: takes milliseconds, and no MLflow."""
    sizes = {}
    for path in journals(results / FOLDER):
        try:
            sizes[path] = path.stat().st_size
        except OSError:  # a new job of its stage has just deleted it
            continue
    return sizes


def _has_ended(journal: Path) -> bool:
    """Whether the last record of a journal is its end."""
    with suppress(OSError, ValueError), open(journal, "rb") as file:  # an end is short
        file.seek(max(0, journal.stat().st_size - 2000))
        return "end" in json.loads(file.read().rstrip(b"\n").rpartition(b"\n")[2])
    return False
