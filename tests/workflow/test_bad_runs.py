"""Mistakes that only the files or the machine reveal: one clear line, a non-zero exit, nothing half-written."""

from __future__ import annotations

import json
import shutil
import subprocess

import pyarrow.parquet
import pytest
import torch

from tests.workflow.conftest import Workspace

pytestmark = pytest.mark.workflow


def complaint(workspace: Workspace, target: str, *arguments: str, **environment: str) -> str:
    """The last line on the screen, and the only one that says so."""
    result = workspace.run(target, *arguments, **environment)
    assert result.returncode != 0
    assert "Traceback" not in result.stdout
    assert not (workspace.folder / target).exists()
    lines = result.stdout.splitlines()
    assert [line for line in lines if line.startswith("planer: ")] == lines[-1:], result.stdout
    return lines[-1]


@pytest.fixture
def copied(finished, tmp_path) -> Workspace:
    """A copy of the finished workspace to spoil."""
    workspace = Workspace(tmp_path / "copied")
    shutil.copytree(finished.folder, workspace.folder, dirs_exist_ok=True)
    return workspace


def test_results_that_are_no_folder(workspace):
    (workspace.folder / "results").touch()
    line = complaint(workspace, "results/tiny/latency_table.parquet")
    assert "results is no folder" in line


def test_full_results_folder(workspace):
    results = workspace.folder / "results"
    results.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", results], capture_output=True)
    if mount.returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        assert "No space left" in complaint(workspace, "results/tiny/latency_table.parquet")
    finally:
        subprocess.run(["umount", results], check=True)


def test_truncated_corpus(workspace):
    (workspace.folder / "enwik8-4MB").write_bytes(b"<mediawiki")
    line = complaint(workspace, "results/data/enwik8-mini/manifest.json", PLANER_DATA=str(workspace.folder))
    assert "enwik8-4MB" in line and "10 bytes" in line and "4,000,000" in line


def test_corpus_of_another_text(workspace):
    (workspace.folder / "enwik8-4MB").write_bytes(bytes(4_000_000))
    line = complaint(workspace, "results/data/enwik8-mini/manifest.json", PLANER_DATA=str(workspace.folder))
    assert "sha256" in line and "9f9ca3a4" in line


def test_corpus_too_small_for_the_batch(copied):
    copied.edit(retrain={"batch": 1_000_000}, max_hours=1.0e9)
    line = complaint(copied, "results/tiny/par/retrain/model.safetensors")
    assert "needs 2,000,000" in line and "900,000" in line


def test_steps_raised_beyond_max_hours_are_refused_at_any_depth(copied):
    copied.edit(retrain={"steps": 100_000_000})
    line = complaint(copied, "results/tiny/par/retrain/model.safetensors")
    assert "max_hours = 24" in line and "would train for about" in line


def test_latency_table_of_another_device(copied):
    path = copied.folder / "results/tiny/latency_table.parquet"
    table = pyarrow.parquet.read_table(path)
    note = {key: value.replace(b'"torch": "', b'"torch": "0.1 of ') for key, value in table.schema.metadata.items()}
    del note[b"checksum"]  # as if it had been measured there
    pyarrow.parquet.write_table(table.replace_schema_metadata(note), path)
    line = complaint(copied, "results/tiny/target_0.7/search/metrics.json")
    assert "0.1 of " in line and "latency_table" in line


def test_target_out_of_reach(copied):
    line = complaint(copied, "results/tiny/target_0.001/architecture.yaml")
    assert "reachable range" in line and "0.001" in line
    assert not (copied.folder / "results/tiny/target_0.001/search/metrics.json").exists()


def test_loss_that_is_no_number_keeps_the_last_checkpoint(copied):
    copied.edit(retrain={"optimizer": {"lr": 1.0e6, "warmup_steps": 25}, "checkpoint_steps": 1})
    line = complaint(copied, "results/tiny/baseline-seed3/retrain/model.safetensors")
    assert "at step" in line and "learning rate" in line and "last good checkpoint" in line
    assert list(copied.folder.glob("scratch/tiny/baseline-seed3/retrain/**/*.safetensors"))


def test_an_experiment_that_would_never_finish(workspace):
    line = complaint(workspace, "results/tiny/par/eval.json", "--config", "max_hours=1.0e-6")
    assert "max_hours" in line and "results/enwik8-mini/target_0.5/eval.json" in line
    assert not list(workspace.folder.glob("results/data/*")), "refused before any other work"


def test_steps_raised_after_the_estimate(copied):
    copied.edit(retrain={"steps": 100_000_000})
    line = complaint(copied, "results/tiny/par/eval.json")
    assert "retrain" in line and "max_hours = 24" in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_device_that_is_not_there(copied):
    copied.edit(device="cuda")
    assert "cuda" in complaint(copied, "results/tiny/par/retrain/model.safetensors")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_execution_that_needs_another_device(workspace):
    workspace.edit(workload={"execution": "graph"})
    line = complaint(workspace, "results/tiny/latency_table.parquet")
    assert "graph needs a CUDA device" in line and "use eager or compiled" in line


def test_evaluation_reports_are_json(finished):
    for report in finished.folder.glob("results/tiny/*/eval.json"):
        json.loads(report.read_text(), parse_constant=pytest.fail)
