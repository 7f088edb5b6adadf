"""One run in MLflow and the file with its state."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

from planer.errors import UserError
from planer.files import read_json, write_json
from planer.workflow.tracking.journal import Journal, fingerprint, state_path
from planer.workflow.tracking.store import Store

IDENTITY = "planer_id"
"""The tag by which a run is found again when a sync was killed before it could remember the run."""


class Memory:
    """A file with the state of one run in the present store; states of other stores are dropped."""

    def __init__(self, path: Path, key: str):
        self._path = path
        self.values: dict = {"store": key}
        with suppress(UserError):  # absent or damaged: the run is found by its tag
            values = read_json(path)
            if values.get("store") == key:
                self.values = values

    def update(self, **values: object) -> None:
        """Change values, in the file too."""
        self.values |= values
        write_json(self._path, self.values)


class Run:
    """A run in MLflow.  Repeated values are written once."""

    def __init__(self, store: Store, run_id: str):
        self.run_id = run_id
        self._client = store.client

    @classmethod
    def find_or_create(
        cls, store: Store, experiment_id: str, memory: Memory, name: str, tags: Mapping[str, str], start: int
    ) -> Run:
        """The remembered run, else the one with the same planer_id among its tags, else a new one.

        A remembered run that was deleted in MLflow is made anew from the beginning of its journal.
        """
        from mlflow.exceptions import MlflowException

        if run_id := memory.values.get("run"):
            try:
                if store.client.get_run(run_id).info.lifecycle_stage == "active":
                    return cls(store, run_id)
            except MlflowException as error:
                if store.lost(error):
                    raise
            memory.values = {"store": memory.values["store"]}
        query = f"tags.{IDENTITY} = '{tags[IDENTITY]}'"
        found = store.client.search_runs([experiment_id], query, max_results=1)
        run = found[0] if found else store.client.create_run(experiment_id, start, dict(tags), name)
        memory.update(run=run.info.run_id)
        return cls(store, run.info.run_id)

    def log_params(self, params: Mapping[str, str]) -> None:
        """Params, 100 at a time, which is the most MLflow takes."""
        from mlflow.entities import Param

        entities = [Param(allowed_name(name), value) for name, value in params.items()]
        for start in range(0, len(entities), 100):
            self._client.log_batch(self.run_id, params=entities[start : start + 100])

    def log_points(self, points: list[tuple[str, float, int, int]]) -> None:
        """Points (name, value, time in milliseconds, step), 1000 at a time, which is the most MLflow takes."""
        from mlflow.entities import Metric

        entities = [Metric(allowed_name(name), *rest) for name, *rest in points]
        for start in range(0, len(entities), 1000):
            self._client.log_batch(self.run_id, metrics=entities[start : start + 1000])

    def tag(self, tags: Mapping[str, str]) -> None:
        """Tags, 100 at a time."""
        from mlflow.entities import RunTag

        entities = [RunTag(name, value) for name, value in tags.items()]
        for start in range(0, len(entities), 100):
            self._client.log_batch(self.run_id, tags=entities[start : start + 100])

    def untag(self, name: str) -> None:
        """Take a tag away, if it is there."""
        if name in self._client.get_run(self.run_id).data.tags:
            self._client.delete_tag(self.run_id, name)

    def set_status(self, status: str, time: int | None = None) -> None:
        """RUNNING, FINISHED, FAILED or KILLED, and when it ended."""
        if status == "RUNNING":
            self._client.update_run(self.run_id, status=status)
        else:
            self._client.set_terminated(self.run_id, status, time)

    def keep(self, paths: list[Path]) -> None:
        """Files or folders as artifacts, small ones first: a slow upload that is cut off leaves the rest in order.

        Where the store is local, files are linked and not copied: they cost no space, and as results are replaced and
        never written in place, a run keeps what it made.
        """
        if not paths:
            return
        uri = urlparse(self._client.get_run(self.run_id).info.artifact_uri)
        for path in sorted(paths, key=lambda path: path.stat().st_size):
            if uri.scheme not in ("file", ""):
                upload = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
                upload(self.run_id, str(path), *([path.name] if path.is_dir() else []))
                continue
            target = Path(url2pathname(uri.path)) / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                hidden = shutil.ignore_patterns(".*")  # such as Snakemake's time stamps
                shutil.copytree(path, target, copy_function=_link, ignore=hidden, dirs_exist_ok=True)
            else:
                _link(path, target)


class StageMirror:
    """The run of one journal."""

    def __init__(self, store: Store, journal: Journal, experiment: str):
        self._store = store
        self._journal = journal
        self._experiment_id, key = store.experiment(experiment)
        self.memory = Memory(state_path(journal.path), key)

    @property
    def pending(self) -> bool:
        """Whether the journal has something that MLflow does not know."""
        known = self.memory.values
        return self._journal.size > known.get("offset", 0) or self._killed

    @property
    def _killed(self) -> bool:
        return self.memory.values.get("status") == "RUNNING" and not self._journal.alive()

    def catch_up(self, parent: str, folder: Path) -> None:
        """Log what the journal says since the last time; parent is the id of the run above, and artifacts are below
        folder unless their paths are absolute.

        Any step may fail and is repeated by the next sync: nothing counts as logged before MLflow has taken it.
        """
        first = self._journal.read()[0][:1]
        if not first:
            return  # its job has only just begun
        start = first[0].get("start")
        if not isinstance(start, dict):
            raise UserError(f"{self._journal.path} is damaged (no start); delete it, its run is lost")
        tags = {**start["tags"], "kind": "stage", "mlflow.parentRunId": parent, IDENTITY: self._journal.identity}
        run = Run.find_or_create(self._store, self._experiment_id, self.memory, start["name"], tags, first[0]["time"])
        if not self.memory.values.get("offset"):
            run.log_params(start["params"])
        alive = self._journal.alive()  # asked first: what a job that has ended wrote is all there to read
        records, offset = self._journal.read(self.memory.values.get("offset", 0))
        points = [
            (name, value, record["time"], record["step"])
            for record in records
            for kind in ("series", "results")
            for name, value in record.get(kind, {}).items()
        ]
        run.log_points(points)
        status, time = self._status(run, records, alive)
        if status != "RUNNING":  # before that a file may be replaced
            self._keep(run, folder)
        self.memory.update(offset=offset, status=status, time=time)

    def _status(self, run: Run, records: list[dict], alive: bool) -> tuple[str, int]:
        """Where the run stands after these records; MLflow is told of it."""
        status, time = self.memory.values.get("status"), self.memory.values.get("time", 0)
        for record in records:
            if "start" in record:
                status, time = "RUNNING", record["time"]
                run.tag(record["start"]["tags"])
                run.untag("error")  # of an earlier attempt
            elif "end" in record:
                status, time = record["end"], record["time"]
                run.tag({"error": record["error"]} if "error" in record else {})
        if status == "RUNNING" and not alive:
            status, time = "KILLED", self._journal.modified
        if status != self.memory.values.get("status"):
            run.set_status(status, time)
        return status, time

    def _keep(self, run: Run, folder: Path) -> None:
        """The artifacts of the last attempt that are still as they were."""
        listed = [entry for record in self._journal.read()[0] for entry in record.get("artifacts", [])]
        files = {path: known for path, known in listed}
        changed = [path for path, known in files.items() if known is None or fingerprint(folder / path) != known]
        run.keep([folder / path for path in files if path not in changed])
        if changed:
            run.tag({"artifacts_missing": ", ".join(changed)[:5000]})


def allowed_name(name: str) -> str:
    """A name that MLflow accepts for a param or metric."""
    return re.sub(r"[^\w\-./ ]", "_", name)[:250]


def _link(source: str | Path, target: str | Path) -> None:
    """The same file under a second name; a copy where the filesystem cannot."""
    Path(target).unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
