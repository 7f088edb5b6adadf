"""The cluster and the checkout of all tests here."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.slurm.cluster import Cluster, missing

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 1800
"""Seconds that a command may take on a busy machine; on an idle one it takes one to three minutes."""
PARTS = ("Snakefile", "rules", "workflow", "planer", "config", "profiles", "envs")


class Checkout:
    """A copy of the workflow with the tiny experiment, as a user has it on the cluster's shared file system."""

    def __init__(self, folder: Path, cluster: Cluster):
        self.folder, self.cluster = folder, cluster
        for part in PARTS:
            copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
            copy(ROOT / part, folder / part)
        self.experiment = folder / "config/experiments/tiny.yaml"
        shutil.copy(ROOT / "tests/workflow/tiny.yaml", self.experiment)
        self.edit("profile_blocks", rounds=3, max_seconds=5.0)

    def start(self, command: str) -> subprocess.Popen:
        """Start a command line here, with the programs of this environment and the cluster and no home folder."""
        tools = f"{Path(sys.executable).parent}{os.pathsep}{self.cluster.environment['PATH']}"
        environment = os.environ | self.cluster.environment | {"PATH": tools, "HOME": "/proc/nowhere"}
        return subprocess.Popen(
            command.split(),
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # Children of a background process ignore the interrupt key.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    def run(self, command: str) -> str:
        """Run a command line that must succeed, and return what it prints."""
        process = self.start(command)
        output, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, output
        return output

    def edit(self, section: str, **keys: object) -> None:
        """Change keys of the experiment's file."""
        values = yaml.safe_load(self.experiment.read_text())
        values[section] |= keys
        self.experiment.write_text(yaml.safe_dump(values, sort_keys=False))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Two nodes; skips with the reason where they cannot be started."""
    if reason := missing():
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="slurm", dir="/tmp"))
    folder.chmod(0o755)
    try:
        with Cluster(folder) as cluster:
            yield cluster
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def checkout(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """The folder of all commands."""
    return Checkout(tmp_path_factory.mktemp("checkout"), cluster)
