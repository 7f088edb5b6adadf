"""A job's records for MLflow: a file with one JSON object a line.

``results/.tracking/<experiment>/<variant>/<stage>/<start>-<pid>.jsonl`` holds one run.  A job that follows a failed or
killed one with the same params appends to its journal and so continues its run.  Any other job starts a new journal.
A running job holds a lock on its journal, so a journal without an end and without a lock is that of a killed job.

Records: ``start`` (name, params and tags of the run; again, with tags only, for each further attempt), ``series``
(points of metric series), ``results`` (metrics of the whole stage), ``artifacts`` (files), ``end`` (status).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import signal
import sys
import threading
import time
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from numbers import Real
from pathlib import Path

from planer.errors import UserError
from planer.git import git_commit
from planer.workflow.tracking.secrets import one_line

FOLDER = ".tracking"
"""Of the journals, among the results."""
KEPT = 5
"""Journals that a stage keeps at most, the newest and those before it that MLflow has not taken."""

TERMINATING = (signal.SIGTERM, signal.SIGHUP)
"""Signals that end a job as an exception; SIGHUP comes when a terminal is closed."""

ENDS_BYTES = 2**16
"""Of a file, at either end, that its fingerprint is made of: weights may have gigabytes."""


@contextmanager
def track(
    *,
    experiment: str,
    variant: str,
    stage: str,
    params: Mapping,
    tags: Mapping[str, str] | None = None,
    results: str | Path = "results",
) -> Iterator[StageRun]:
    """Record the body as one run: FINISHED, FAILED by an exception, or KILLED by a signal.

    params is any nesting of mappings; it is logged flattened, with dots between the keys.  SIGTERM and SIGHUP, where
    nothing else handles or ignores them, become SystemExit(143) and SystemExit(129), so that the run is closed and
    finally-blocks execute.
    """
    if os.environ.get("MLFLOW_TRACKING_URI") == "none":
        yield StageRun(None)
        return
    run = {
        "name": f"{variant}/{stage}",
        "params": {name: str(value) for name, value in _flat(params).items()},
        "tags": {"experiment": experiment, "variant": variant, "stage": stage, **(tags or {}), **_versions()},
    }
    journal = _Writer(Path(results) / FOLDER / experiment / variant / stage, run)
    end = {"end": "FINISHED"}
    try:
        with _terminable():
            yield StageRun(journal)
    except BaseException as error:
        end = _end(error)
        raise
    finally:
        journal.write({"time": _now(), **end})
        if trouble := journal.close():
            print(f"warning: MLflow will not get all of {stage} ({trouble}); its results are complete", file=sys.stderr)


class StageRun:
    """A stage's records for MLflow.  No call raises or waits."""

    def __init__(self, journal: _Writer | None):
        self._journal = journal
        self._step = 0

    def row(self, values: Mapping) -> None:
        """One row of metric series: values["step"] is the step, every other number a point of its series."""
        self._step = values.get("step", self._step)
        self._write("series", {name: value for name, value in values.items() if name != "step"})

    def metrics(self, values: Mapping) -> None:
        """Results of the whole stage, nested or not, logged at the last row's step.  Only numbers are kept."""
        self._write("results", values)

    def artifact(self, *paths: str | Path) -> None:
        """Files or folders to keep with the run as they are now; a later change of one keeps it out of the run."""
        if self._journal:
            with self._journal.keeping_trouble():
                files = [[str(path), fingerprint(Path(path))] for path in paths]
                self._journal.write({"artifacts": files})

    def _write(self, kind: str, values: Mapping) -> None:
        if self._journal:
            with self._journal.keeping_trouble():
                step = int(self._step)
                numbers = {name: float(value) for name, value in _flat(values).items() if isinstance(value, Real)}
                if kind == "series":  # an attempt that resumes repeats the steps after its checkpoint
                    seen = self._journal.last_steps
                    numbers = {name: value for name, value in numbers.items() if step > seen.get(name, -1)}
                if numbers:
                    self._journal.write({"time": _now(), "step": step, kind: numbers})


class _Writer:
    """The journal of a job that runs.  The first trouble is kept, none is raised."""

    def __init__(self, folder: Path, run: dict):
        self._trouble = ""
        self._file = None
        self.last_steps: dict[str, int] = {}
        """Last step of each series in earlier attempts."""
        with self.keeping_trouble():
            folder.mkdir(parents=True, exist_ok=True)
            digest = hashlib.sha256(json.dumps(run["params"], sort_keys=True).encode()).hexdigest()
            earlier = max(journals(folder), default=None)
            if not (earlier and self._continue(earlier, digest)):
                self._begin(folder / f"{time.time_ns()}-{os.getpid()}.jsonl")
                run = {**run, "digest": digest}
            else:
                run = {"tags": run["tags"]}
            self.write({"time": _now(), "start": run})

    def _begin(self, path: Path) -> None:
        self._open(path)
        for old in sorted(journals(path.parent))[:-KEPT]:
            delete_journal(old)

    def _continue(self, path: Path, digest: str) -> bool:
        """Open the journal of an earlier attempt at the same run, if it is one."""
        try:
            journal = Journal(path)
            records, size = journal.read()
        except UserError:
            return False
        if journal.alive() or not records or records[0].get("start", {}).get("digest") != digest:
            return False
        if [record["end"] for record in records if "end" in record][-1:] == ["FINISHED"]:
            return False
        self._open(path)
        os.truncate(path, size)  # the earlier attempt may have been killed within a line
        for record in records:
            self.last_steps.update(dict.fromkeys(record.get("series", ()), record.get("step")))
        return True

    def _open(self, path: Path) -> None:
        self._file = open(path, "ab")  # noqa: SIM115  closed by close()
        with suppress(OSError):  # some network filesystems have no locks
            fcntl.flock(self._file, fcntl.LOCK_EX)

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
            if self._file:
                self._file.write(json.dumps(record, default=str).encode() + b"\n")
                self._file.flush()

    def close(self) -> str:
        """Close the journal; return what went wrong, or nothing."""
        with self.keeping_trouble():
            if self._file:
                self._file.close()
        return self._trouble


class Journal:
    """A journal that is read."""

    def __init__(self, path: Path):
        self.path = path

    @property
    def identity(self) -> str:
        """A name that no other journal has: where it belongs, start in nanoseconds, and process."""
        return "/".join((*self.path.parts[-4:-1], self.path.stem))

    @property
    def size(self) -> int:
        """Bytes, asked of the open file: on a network filesystem its attributes may be a minute old before that."""
        with open(self.path, "rb") as file:
            return os.fstat(file.fileno()).st_size

    @property
    def modified(self) -> int:
        """When something was appended last, in milliseconds."""
        return self.path.stat().st_mtime_ns // 1_000_000

    def read(self, offset: int = 0) -> tuple[list[dict], int]:
        """Whole records from a byte on, and the byte behind them.

        Raises UserError for a journal that cannot be read.
        """
        try:
            with open(self.path, "rb") as file:
                file.seek(offset)
                text = file.read()
            whole = text[: text.rfind(b"\n") + 1]
            return [_record(line) for line in whole.splitlines()], offset + len(whole)
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path} is damaged ({one_line(error)}); delete it, its run is lost") from error

    def alive(self) -> bool:
        """Whether its job still runs: then it holds the lock.  True where the filesystem has no locks."""
        with open(self.path, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return True
        return False


def journals(folder: Path) -> list[Path]:
    """Journals below a folder."""
    return list(folder.rglob("*.jsonl"))


def state_path(journal: Path) -> Path:
    """The file with the state of a journal in MLflow."""
    return journal.with_suffix(".state")


def delete_journal(journal: Path) -> None:
    """Delete a journal and its state."""
    for path in (state_path(journal), journal):
        path.unlink(missing_ok=True)


def fingerprint(path: Path) -> str | None:
    """Size, start and end of a file, or names and sizes of a folder, to notice changes; None when it is missing.

    Dates are no help: Snakemake touches outputs after their job has ended.
    """
    digest = hashlib.sha256()
    try:
        if path.is_dir():
            files = [file for file in sorted(path.rglob("*")) if file.is_file() and not file.name.startswith(".")]
            digest.update(repr([(str(file.relative_to(path)), file.stat().st_size) for file in files]).encode())
            return digest.hexdigest()[:16]
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest.update(f"{size}".encode() + file.read(ENDS_BYTES))
            file.seek(max(0, size - ENDS_BYTES))
            digest.update(file.read())
    except OSError:
        return None
    return digest.hexdigest()[:16]


def _record(line: bytes) -> dict:
    record = json.loads(line)
    if not isinstance(record, dict):
        raise ValueError(f"no record: {line[:40]!r}")
    return record


def _now() -> int:
    """Milliseconds, as MLflow counts."""
    return time.time_ns() // 1_000_000


def _flat(values: Mapping, prefix: str = "") -> dict[str, object]:
    """Nested mappings as one, with dots between the keys."""
    flat: dict[str, object] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _versions() -> dict[str, str]:
    """Versions that results depend on, and the SLURM job if there is one."""
    found = {"python": platform.python_version(), "git_commit": git_commit()}
    with suppress(PackageNotFoundError):
        found["torch"] = version("torch")
    with suppress(OSError):
        project = Path(__file__).resolve().parents[3] / "pyproject.toml"
        found["planer"] = tomllib.loads(project.read_text())["project"]["version"]
    if "SLURM_JOB_ID" in os.environ:
        found["slurm_job_id"] = os.environ["SLURM_JOB_ID"]
    return found


def _end(error: BaseException) -> dict[str, str]:
    """The last record of a job that an exception ended."""
    code = error.code if isinstance(error, SystemExit) else None
    if isinstance(error, KeyboardInterrupt) or code in [128 + number for number in (*TERMINATING, signal.SIGINT)]:
        return {"end": "KILLED"}
    if isinstance(error, SystemExit) and code in (None, 0):
        return {"end": "FINISHED"}
    return {"end": "FAILED", "error": one_line(error)}


@contextmanager
def _terminable() -> Iterator[None]:
    """Turn TERMINATING into SystemExit, unless handled or ignored already.  Signals reach the main thread only."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    main = threading.current_thread() is threading.main_thread()
    turned = [number for number in TERMINATING if main and signal.getsignal(number) is signal.SIG_DFL]
    for number in turned:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in turned:
            signal.signal(number, signal.SIG_DFL)
