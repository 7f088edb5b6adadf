"""The process beside a job that tells MLflow what the job writes: ``python -m planer.mirror SPOOL SECONDS``.

SPOOL is the descriptor of the file of records that ``planer/tracking.py`` describes, one JSON object a line, the
first saying where to log.  Standard input closes when the job ends, however it ends; then SECONDS are left.  What
could not be logged is said in one line on standard output.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import platform
import re
import select
import shutil
import signal
import sqlite3
import sys
import tomllib
from contextlib import closing, nullcontext, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

from planer.files import UserError, read_json, write_json
from planer.source import git_commit
from planer.tracking import ROOT, one_line

FLUSH_SECONDS = 10
"""Between two looks at a running job's records: a call to SQLite takes 65 ms and more under contention."""


class Mirror:
    """One MLflow run that catches up with a job.

    Any step may fail and is repeated at the next look: nothing counts as logged before MLflow has taken it, and MLflow
    takes the same param, tag or point of a series twice.
    """

    def __init__(self, spool: int):
        self._spool = spool
        first = os.pread(spool, os.fstat(spool).st_size, 0).partition(b"\n")[0]
        self._header = json.loads(first)
        self._offset = len(first) + 1
        self._client = None
        self._run_id = ""
        self._params_logged = False
        self._earlier: dict[str, int] = {}  # last step of each series in an earlier attempt's part of the run
        self._steps: dict[str, int] = {}  # last step of each series
        self._artifacts: set[Path] = set()
        self._end = {"status": "KILLED"}

    def catch_up(self, ended: bool) -> None:
        """Log what the job has written since the last time and, when it has ended, its files and status."""
        if self._client is None:
            self._connect()
        run = self._header.get("run")
        if run is None:
            return
        if not self._run_id:
            self._open(run)
        if not self._params_logged:
            self._log_params(run["params"])
        records, offset = self._read()
        for record in records:
            self._artifacts.update(map(Path, record.get("artifacts", [])))
            self._end = record if "status" in record else self._end
        try:
            self._log_metrics(records)
            self._offset = offset
            self._remember()
        finally:
            if ended:
                self._close()

    def _read(self) -> tuple[list[dict], int]:
        """Whole records from the offset on, and the offset behind them."""
        text = os.pread(self._spool, os.fstat(self._spool).st_size - self._offset, self._offset)
        whole = text[: text.rfind(b"\n") + 1]
        return [json.loads(line) for line in whole.splitlines()], self._offset + len(whole)

    def _connect(self) -> None:
        """Open the store and find the experiments, or create them.

        One process at a time: simultaneous migrations of a new database break it for good.  Experiments are found by
        name and passed on by id: MLflow's set_experiment puts runs of simultaneous processes into Default.
        """
        from filelock import FileLock
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        results = self._header["folder"] and Path(self._header["folder"])
        if results:
            results.mkdir(parents=True, exist_ok=True)
        if self._header["uri"].startswith("sqlite:///"):  # MLflow tries for 100 s to open what is no database
            path = self._header["uri"].removeprefix("sqlite:///").partition("?")[0]
            with closing(sqlite3.connect(path, timeout=20)) as database:
                database.execute("PRAGMA schema_version")
        with FileLock(results / ".mlflow.lock", timeout=30) if results else nullcontext():
            client = MlflowClient(self._header["uri"])
            for name in self._header["experiments"]:
                location = (results / "mlartifacts" / name).as_uri() if results else None
                if client.get_experiment_by_name(name) is None:
                    with suppress(MlflowException):  # another machine was faster
                        client.create_experiment(name, artifact_location=location)
                self._experiment_id = client.get_experiment_by_name(name).experiment_id
        self._client = client

    def _open(self, run: dict) -> None:
        """Continue the run of an earlier attempt, else start one."""
        from mlflow.exceptions import MlflowException

        digest = hashlib.sha256(json.dumps(run["params"], sort_keys=True).encode()).hexdigest()
        self._memory = Path(run["scratch"]) / "mlflow_run.json" if run["scratch"] else None
        self._identity = {"store": self._header["uri"], "params": digest}
        with suppress(OSError, ValueError, KeyError, MlflowException):  # no earlier attempt, or its run was deleted
            memory = read_json(self._memory) if self._memory else {}
            if memory["identity"] == self._identity:
                self._client.update_run(memory["run_id"], status="RUNNING")
                self._run_id, self._earlier, self._steps = memory["run_id"], memory["steps"], dict(memory["steps"])
                return
        tags = {**run["tags"], **_versions(), "git_commit": git_commit()}
        created = self._client.create_run(self._experiment_id, run["time"], tags, run["name"])
        self._run_id = created.info.run_id

    def _log_params(self, params: dict[str, str]) -> None:
        from mlflow.entities import Param

        entities = [Param(_name(name), value) for name, value in params.items()]
        for start in range(0, len(entities), 100):  # the most MLflow takes at once
            self._client.log_batch(self._run_id, params=entities[start : start + 100])
        self._params_logged = True

    def _log_metrics(self, records: list[dict]) -> None:
        """Points of series that an earlier attempt has not logged already, and results."""
        from mlflow.entities import Metric

        points = []
        for record in records:
            for name, value in record.get("series", {}).items():
                if record["step"] > self._earlier.get(name, -1):
                    points.append(Metric(_name(name), value, record["time"], record["step"]))
                    self._steps[name] = record["step"]
            for name, value in record.get("results", {}).items():
                points.append(Metric(_name(name), value, record["time"], record["step"]))
        for start in range(0, len(points), 1000):  # the most MLflow takes at once
            self._client.log_batch(self._run_id, metrics=points[start : start + 1000])

    def _remember(self) -> None:
        if self._memory is None:
            return
        with suppress(UserError):  # a full disk: another attempt would begin another run
            write_json(self._memory, {"identity": self._identity, "run_id": self._run_id, "steps": self._steps})

    def _close(self) -> None:
        """Status first, then files, small ones first: a slow upload that is cut off leaves the rest in order."""
        if self._end.get("error"):
            self._client.set_tag(self._run_id, "error", self._end["error"])
        self._client.set_terminated(self._run_id, self._end["status"], self._end.get("time"))
        if self._memory and self._end["status"] == "FINISHED":
            self._memory.unlink(missing_ok=True)
            with suppress(OSError):  # a checkpoint may be there
                self._memory.parent.rmdir()
        found = [path for path in self._artifacts if path.exists()]
        for path in sorted(found, key=lambda path: path.stat().st_size):
            self._keep(path)
        if len(found) < len(self._artifacts):
            raise FileNotFoundError(f"no such artifact: {min(self._artifacts.difference(found))}")

    def _keep(self, path: Path) -> None:
        uri = urlparse(self._client.get_run(self._run_id).info.artifact_uri)
        if uri.scheme != "file":
            keep = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
            keep(self._run_id, str(path))
            return
        target = Path(url2pathname(uri.path)) / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            shutil.copytree(path, target, copy_function=_link, dirs_exist_ok=True)
        else:
            _link(path, target)


def serve(spool: int, seconds: int) -> str:
    """Follow a job to its end; return what MLflow did not take."""
    for number in (signal.SIGTERM, signal.SIGINT):  # meant for the job, whose end shows here anyway
        signal.signal(number, signal.SIG_IGN)
    gc.disable()  # while MLflow's modules are imported, to stay: 1.5 s of CPU instead of 2.0
    mirror = Mirror(spool)
    ended, wait = False, 0
    while not ended:
        ended = bool(select.select([sys.stdin], [], [], wait)[0])
        wait = FLUSH_SECONDS
        if ended:
            signal.alarm(seconds)  # ends this process when the job is no longer there to do it
        try:
            mirror.catch_up(ended)
            problem = ""
        except Exception as error:
            problem = one_line(error)
        gc.enable()
    return problem


def _versions() -> dict[str, str]:
    """Versions that results depend on, and the SLURM job if there is one."""
    found = {"python": platform.python_version()}
    with suppress(PackageNotFoundError):
        found["torch"] = version("torch")
    with suppress(OSError):
        found["planer"] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    if "SLURM_JOB_ID" in os.environ:
        found["slurm_job_id"] = os.environ["SLURM_JOB_ID"]
    return found


def _name(name: str) -> str:
    """A name that MLflow accepts for a param or metric."""
    return re.sub(r"[^\w\-./ ]", "_", name)[:250]


def _link(source: str | Path, target: str | Path) -> None:
    """The same file under a second name; a copy where the filesystem cannot."""
    Path(target).unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


if __name__ == "__main__":
    report = os.dup(1)
    os.dup2(2, 1)  # MLflow prints addresses of runs
    os.write(report, serve(int(sys.argv[1]), int(sys.argv[2])).encode())
    os._exit(0)  # taking MLflow's modules apart would keep the job waiting for another half a second
