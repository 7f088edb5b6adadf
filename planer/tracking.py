"""The MLflow mirror: what every stage does, shown in MLflow while it happens.

Files under ``results/`` are the truth.  MLflow holds a view of them, and no trouble with it, from a missing package
to a dead server, costs a result or delays a job by more than a minute: it ends as one line of warning.  The store is
``results/mlflow.db`` (SQLite) with files under ``results/mlartifacts``, unless the environment variable
``MLFLOW_TRACKING_URI`` names another; ``MLFLOW_TRACKING_URI=none`` switches the mirror off.

A job only appends records to an unnamed file.  A second process (``planer/mirror.py``), started with the job's first
row of metrics or at its end, imports MLflow (two seconds of CPU), follows that file and logs it in batches.  So a job
that measures latencies, and has no rows meanwhile, is not disturbed; training shares neither its interpreter nor a
crash with MLflow; and the run of a job that is killed outright is still marked KILLED.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from numbers import Real
from pathlib import Path

CLOSE_SECONDS = 60
"""What a finished job waits for its mirror at most."""
KILLED_SECONDS = 10
"""The same for a killed one: SLURM gives 30 s between SIGTERM and SIGKILL."""
ROOT = Path(__file__).resolve().parents[1]
MLFLOW_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds; MLflow's own 120 and 7 retries outlast any patience
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
"""Set for the mirror process where the user's environment does not say otherwise."""


def initialise(results: str | Path, *experiments: str) -> None:
    """Create the default store and these experiments in it, before jobs start that would all create it at once.

    Takes milliseconds when they exist.  Other stores are left to their server and to the first job that uses them.
    """
    if os.environ.get("MLFLOW_TRACKING_URI") or _holds(Path(results) / "mlflow.db", experiments):
        return
    connection = _Connection({**_store(Path(results)), "experiments": experiments})
    _warn("the experiments", connection.close(CLOSE_SECONDS))


@contextmanager
def track(
    *,
    experiment: str,
    variant: str,
    stage: str,
    params: Mapping,
    tags: Mapping[str, str] | None = None,
    scratch: str | Path | None = None,
    results: str | Path = "results",
) -> Iterator[StageRun]:
    """Mirror the body as one MLflow run: FINISHED, FAILED by an exception, or KILLED by a signal.

    params is any nesting of mappings; it is logged flattened, with dots between the keys.  With a scratch folder, an
    attempt that follows a failed or killed one with the same params continues its run.  SIGTERM, where nothing else
    handles it, becomes SystemExit(143), so that the run is closed and finally-blocks execute.
    """
    if os.environ.get("MLFLOW_TRACKING_URI") == "none":
        yield StageRun(None)
        return
    run = {
        "name": f"{variant}/{stage}",
        "time": _now(),
        "params": {name: str(value) for name, value in _flat(params).items()},
        "tags": {"experiment": experiment, "variant": variant, "stage": stage, **(tags or {})},
        "scratch": str(Path(scratch).resolve()) if scratch else None,
    }
    connection = _Connection({**_store(Path(results)), "experiments": [experiment], "run": run})
    end = {"status": "FINISHED"}
    try:
        with _terminable():
            yield StageRun(connection)
    except BaseException as error:
        end = _end(error)
        raise
    finally:
        connection.write({**end, "time": _now()})
        _warn(f"all of {stage}", connection.close(KILLED_SECONDS if end["status"] == "KILLED" else CLOSE_SECONDS))


class StageRun:
    """What a stage tells MLflow about itself.  No call raises or waits."""

    def __init__(self, connection: _Connection | None):
        self._connection = connection
        self._step = 0

    def row(self, values: Mapping) -> None:
        """One row of metric series: values["step"] is the step, every other number a point of its series."""
        self._step = values.get("step", self._step)
        self._write("series", {name: value for name, value in values.items() if name != "step"})
        if self._connection:
            self._connection.start()

    def metrics(self, values: Mapping) -> None:
        """Results of the whole stage, nested or not, logged at the last row's step.  What is no number is left out."""
        self._write("results", values)

    def artifact(self, *paths: str | Path) -> None:
        """Files or folders to keep with the run, read when the stage ends.

        Where the store is local, files are linked and not copied: they cost no space, and as results are replaced and
        never written in place, a run keeps what it made.
        """
        if self._connection:
            self._connection.write({"artifacts": [str(Path(path).resolve()) for path in paths]})

    def _write(self, kind: str, values: Mapping) -> None:
        if self._connection:
            with self._connection.keeping_trouble():
                numbers = {name: float(value) for name, value in _flat(values).items() if isinstance(value, Real)}
                self._connection.write({"time": _now(), "step": int(self._step), kind: numbers})


class _Connection:
    """A file of records and the process that follows it.  The first trouble is kept, none is raised."""

    def __init__(self, header: Mapping) -> None:
        self._process: subprocess.Popen | None = None
        self._trouble = ""
        with self.keeping_trouble():
            self._spool = tempfile.TemporaryFile()  # noqa: SIM115  closed by close()
        self.write(header)

    @contextmanager
    def keeping_trouble(self) -> Iterator[None]:
        """Keep the first exception as one line."""
        try:
            yield
        except Exception as error:
            self._trouble = self._trouble or one_line(error)

    def write(self, record: Mapping) -> None:
        """Append one record."""
        with self.keeping_trouble():
            self._spool.write(json.dumps(record, default=str).encode() + b"\n")
            self._spool.flush()

    def start(self) -> None:
        """Start the mirror process, once."""
        if self._process:
            return
        with self.keeping_trouble():
            spool = self._spool.fileno()
            path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "planer.mirror", str(spool), str(CLOSE_SECONDS)],
                stdin=subprocess.PIPE,  # carries nothing: its closing tells that the job has ended
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                pass_fds=[spool],
                env={**MLFLOW_DEFAULTS, **os.environ, "PYTHONPATH": path},
            )

    def close(self, seconds: float) -> str:
        """Wait for the mirror, this long at most; return what went wrong, or nothing."""
        self.start()
        with self.keeping_trouble():
            try:
                report, _ = self._process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                self._process.kill()
                raise TimeoutError(f"no answer within {seconds:g} s") from None
            finally:
                self._spool.close()
            code = self._process.returncode
            self._trouble = self._trouble or report.decode().strip() or (f"exit status {code}" if code else "")
        return self._trouble


def one_line(error: BaseException) -> str:
    """An exception as the beginning of one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _store(results: Path) -> dict:
    """Where to log.  A database holds no files, so that runs get a folder among the results; a server has its own."""
    results = results.resolve()
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{results}/mlflow.db"
    remote = uri.startswith(("http:", "https:", "databricks"))
    return {"uri": uri, "folder": None if remote else str(results)}


def _holds(database: Path, experiments: tuple[str, ...]) -> bool:
    """Whether an SQLite store has these experiments, asked without MLflow."""
    try:
        with closing(sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True, timeout=1)) as store:
            return {name for (name,) in store.execute("SELECT name FROM experiments")}.issuperset(experiments)
    except sqlite3.Error:
        return False


def _now() -> int:
    """Milliseconds, as MLflow counts."""
    return time.time_ns() // 1_000_000


def _flat(values: Mapping, prefix: str = "") -> dict[str, object]:
    """Nested mappings as one, with dots between the keys."""
    flat: dict[str, object] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _end(error: BaseException) -> dict[str, str]:
    """The last record of a job that an exception ended."""
    code = error.code if isinstance(error, SystemExit) else None
    if isinstance(error, KeyboardInterrupt) or code in (128 + signal.SIGTERM, 128 + signal.SIGINT):
        return {"status": "KILLED"}
    if isinstance(error, SystemExit) and code in (None, 0):
        return {"status": "FINISHED"}
    return {"status": "FAILED", "error": one_line(error)}


@contextmanager
def _terminable() -> Iterator[None]:
    """Turn SIGTERM into SystemExit, unless somebody else handles it.  Signals reach the main thread only."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _warn(what: str, trouble: str) -> None:
    if trouble:
        print(f"warning: MLflow did not get {what} ({trouble}); results are complete without it", file=sys.stderr)
