"""The run of a variant, above the runs of its stages: the metrics of its network, from eval.json.

The step of its series: 1000 times tau for the dynamic-k sweep, the row's index for latencies of several workloads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from planer.errors import Damaged
from planer.files import read_json
from planer.workflow.tracking.arms import arm_description, arm_figures
from planer.workflow.tracking.journal import FOLDER, fingerprint
from planer.workflow.tracking.runs import IDENTITY, Memory, Run
from planer.workflow.tracking.store import Store
from planer.workflow.tracking.view import VIEW_TAG, columns, view

SHARED = "shared"
"""Owner of the stages that belong to no variant: the latency table, the cost, the comparison, corpora."""


def owner_of(experiment: str, variant: str) -> str:
    """The variant whose run a stage belongs to; corpora belong to none."""
    return SHARED if experiment == "data" else variant


class VariantMirror:
    """The run of one variant, or of the stages that all variants of an experiment share."""

    def __init__(self, store: Store, results: Path, experiment: str, owner: str):
        self._store = store
        self._results = results
        self._folder = results / experiment / owner
        self._experiment, self._owner = experiment, owner
        self._experiment_id, key = store.experiment(experiment)
        self._identity = f"{experiment}/{owner}"
        if not store.belongs_to(results):  # several checkouts may share it, each with a run of this name
            place = hashlib.sha256(str(results.resolve()).encode()).hexdigest()[:12]
            self._identity, key = f"{self._identity}/{place}", f"{key}/{place}"
        self.memory = Memory(results / FOLDER / experiment / owner / "run.json", key)
        self._run: Run | None = None

    def run(self, start: int) -> Run:
        """The run, which is created with this start, in milliseconds, if need be."""
        if self._run is None:
            shared = self._owner == SHARED
            kind = {"kind": "experiment"} if shared else {"kind": "variant", "variant": self._owner}
            tags = {"experiment": self._experiment, **kind, IDENTITY: self._identity}
            name = self._experiment if shared else self._owner
            self._run = Run.find_or_create(self._store, self._experiment_id, self.memory, name, tags, start)
        return self._run

    def update(self, stages: list[Memory], start: int | None) -> bool:
        """Bring status, figures and files up to date; say whether there was anything to do.

        stages: memories of the newest run of each stage.  start: when the first of them began, in milliseconds; None
        where no stage has left a journal.
        """
        known = self.memory.values
        files = {name: fingerprint(path) for name, path in self._files()}
        status = _together([stage.values["status"] for stage in stages if "status" in stage.values])
        written = max((_written(path) for _, path in self._files()), default=0)
        time = max((stage.values.get("time", 0) for stage in stages), default=written)
        start = written if start is None else start
        if known.get("status") == status and known.get("time") == time and known.get("files") == files:
            return False
        run = self.run(start)
        if files.get("eval.json") and known.get("files") != files:
            self._log_figures(run)
        run.keep([path for name, path in self._files() if known.get("files", {}).get(name) != files[name]])
        run.set_status(status, time)
        self.memory.update(status=status, time=time, files=files)
        return True

    def _files(self) -> Iterator[tuple[str, Path]]:
        """The files that the run shows: a variant's evaluation; an experiment's report and figures."""
        folder = self._results / self._experiment
        names = ("report.html", "arms.html", "figures") if self._owner == SHARED else (f"{self._owner}/eval.json",)
        for name in names:
            if (folder / name).exists():
                yield Path(name).name, folder / name

    def _log_figures(self, run: Run) -> None:
        path = self._folder / "eval.json"
        try:
            evaluation = read_json(path)
            if "method" in evaluation:
                points, tags, shown = arm_figures(evaluation), arm_description(evaluation), None
            else:
                points, tags = figures(evaluation), described(evaluation)
                shown = view(evaluation["quality"]["unit"])
        except (ValueError, KeyError, TypeError, IndexError, StopIteration, ZeroDivisionError) as error:
            raise Damaged(path, f"is damaged ({type(error).__name__}: {error})") from error
        time = _written(path)
        run.log_points([(name, value, time, step) for name, value, step in points])
        run.tag(tags)
        if shown:
            self._store.client.set_experiment_tag(self._experiment_id, VIEW_TAG, shown)


def figures(evaluation: dict) -> list[tuple[str, float, int]]:
    """Metrics and series (name, value, step) of a variant, from the contents of its eval.json."""
    unit = evaluation["quality"]["unit"]
    row = next(row for row in evaluation["latency"] if row["headline"])
    network, target, search = evaluation["architecture"], evaluation["target"], evaluation["search"]
    values = (
        evaluation["quality"]["final"]["test"][unit],
        row["speed_up"],
        target["measured"] if target else 1 / row["speed_up"],
        target["requested"] if target else None,
        network["params"],
        network["active_params"],
        evaluation["flops"]["closed_form"],
        search["ratio"] if search else None,
    )
    points = [(name, value, 0) for name, value in zip(columns(unit), values, strict=True)]
    for index, row in enumerate(evaluation["latency"]):
        points += [(f"workload/{name}", row[name], index) for name in ("median_ms", "speed_up")]
    for row in evaluation["dynamic_k"]:
        step = round(1000 * row["tau"])
        points.append((f"tau/{unit}_test", row["test"][unit], step))
        points.append(("tau/median_ms", row["latency"]["median_ms"], step))
        points.append(("tau/flops_ratio", row["converted_flops_ratio"], step))
    return [(name, float(value), step) for name, value, step in points if value is not None]


def described(evaluation: dict) -> dict[str, str]:
    """Tags of a variant: its network and the machine it was measured on."""
    tags = {"pattern": evaluation["architecture"]["pattern"]}
    with suppress(KeyError):
        tags |= {name: str(evaluation["provenance"][name]) for name in ("device", "dtype", "git_commit")}
    return tags


def _written(path: Path) -> int:
    """When a file was written, in milliseconds."""
    return path.stat().st_mtime_ns // 1_000_000


def _together(statuses: list[str]) -> str:
    """The status of a whole from those of its parts."""
    return next((status for status in ("RUNNING", "FAILED", "KILLED") if status in statuses), "FINISHED")
