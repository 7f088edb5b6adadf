"""Working directories in which Snakemake runs the repository's rules for a tiny experiment."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from filelock import FileLock

from planer.latency.table import LatencyTable
from tests.workflow.preloaded import python

ROOT = Path(__file__).resolve().parents[2]


class Workspace:
    """A working directory to run the workflow in."""

    def __init__(self, folder: Path):
        self.folder, self.python = folder, python()
        self.experiment = folder / "config/experiments/tiny.yaml"
        self.experiment.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(__file__).with_name("tiny.yaml"), self.experiment)

    def run(self, *arguments: str, mlflow: bool = False, **environment: str) -> subprocess.CompletedProcess:
        """Run snakemake, with both output streams as one text.  mlflow: mirror the jobs in the folder's store."""
        command = [self.python, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--directory", self.folder]
        surroundings = os.environ | {"MLFLOW_TRACKING_URI": "" if mlflow else "none"}
        return subprocess.run(
            [*map(str, command), "--cores", "2", *arguments],
            cwd=ROOT,
            env=surroundings | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def planned(self, *arguments: str) -> dict[str, int]:
        """The jobs of each rule in a dry run."""
        result = self.run("--dry-run", *arguments)
        assert result.returncode == 0, result.stdout
        table = result.stdout.partition("Job stats:")[2].partition("Reasons:")[0]
        jobs = {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", table, re.MULTILINE)}
        jobs.pop("total", None)
        return jobs

    def edit(self, **sections: dict) -> None:
        """Change keys of the experiment's file."""
        values = yaml.safe_load(self.experiment.read_text())
        for name, keys in sections.items():
            values[name] = values.get(name, {}) | keys if isinstance(keys, dict) else keys
        self.experiment.write_text(yaml.safe_dump(values, sort_keys=False))


COSTS_MS = {
    "embedding_and_head": 0.2,
    "skip": 0.0,
    "attention_1": 0.5,
    "attention_2": 0.9,
    "feed_forward": 0.4,
    "feed_forward_x4": 1.3,
    "moe_top1": 0.6,
    "moe_top2": 1.0,
}
"""Costs of the tiny experiment's options, like those of an idle device."""


def set_costs(path: Path, costs_ms: dict[str, float] = COSTS_MS) -> None:
    """Replace the costs of a measured table: on a busy machine they are noise, and targets may not be feasible."""
    table = LatencyTable.load(path)
    for column in ("p10_ms", "median_ms", "p90_ms"):
        table.rows[column] = table.rows["option"].map(costs_ms)
    table.save(path)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A fresh workspace."""
    return Workspace(tmp_path)


def finish(folder: Path) -> Workspace:
    """Run the tiny experiment to its comparison in a folder.  The costs of its measured latency table are replaced."""
    workspace = Workspace(folder)
    for target in ("results/tiny/latency_table.parquet", "results/tiny/comparison.parquet"):
        result = workspace.run(target, mlflow=True)
        assert result.returncode == 0, result.stdout
        if target.endswith("latency_table.parquet"):
            set_costs(folder / target)
    return workspace


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Workspace:
    """A workspace in which the tiny experiment has run to its comparison.

    Test processes share it: the first that needs it runs it.  Tests must not change it or run Snakemake in it.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "finished"
    with FileLock(folder.with_suffix(".lock")):
        if (folder / "results/tiny/comparison.parquet").exists():
            return Workspace(folder)
        return finish(folder)


def copy_of(finished: Workspace, folder: Path) -> Workspace:
    """Another workspace with all files of the finished one."""
    workspace = Workspace(folder)
    shutil.copytree(finished.folder, folder, dirs_exist_ok=True)
    return workspace
