"""Errors that jobs find in files or on the machine: one line, a non-zero exit code and no output."""

from __future__ import annotations

import json
import subprocess

import pyarrow.parquet
import pytest
import torch

from tests.workflow.conftest import Workspace, copy_of

pytestmark = pytest.mark.workflow


def refusal(workspace: Workspace, target: str, *arguments: str, **environment: str) -> str:
    """The last line of the output, which is the only one by planer."""
    result = workspace.run(target, *arguments, **environment)
    assert result.returncode != 0
    assert "Traceback" not in result.stdout
    assert not (workspace.folder / target).exists()
    lines = result.stdout.splitlines()
    assert [line for line in lines if line.startswith("planer: ")] == lines[-1:], result.stdout
    return lines[-1]


@pytest.fixture
def copied(finished, tmp_path) -> Workspace:
    return copy_of(finished, tmp_path / "copied")


def test_a_results_folder_that_is_a_file(workspace):
    (workspace.folder / "results").touch()
    line = refusal(workspace, "results/tiny/latency_table.parquet")
    assert "results is no folder" in line


def test_a_full_results_folder(workspace):
    results = workspace.folder / "results"
    results.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", results], capture_output=True)
    if mount.returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        assert "No space left" in refusal(workspace, "results/tiny/latency_table.parquet")
    finally:
        subprocess.run(["umount", results], check=True)


def test_a_truncated_corpus(workspace):
    (workspace.folder / "enwik8-4MB").write_bytes(b"<mediawiki")
    line = refusal(workspace, "results/data/enwik8-mini/manifest.json", PLANER_DATA=str(workspace.folder))
    assert "enwik8-4MB" in line and "10 bytes" in line and "4,000,000" in line


def test_a_corpus_with_another_text(workspace):
    (workspace.folder / "enwik8-4MB").write_bytes(bytes(4_000_000))
    line = refusal(workspace, "results/data/enwik8-mini/manifest.json", PLANER_DATA=str(workspace.folder))
    assert "sha256" in line and "9f9ca3a4" in line


def test_a_corpus_too_small_for_the_batch(copied):
    copied.edit(retrain={"batch": 1_000_000}, max_hours=1.0e9)
    line = refusal(copied, "results/tiny/par/retrain/model.safetensors")
    assert "needs 2,000,000" in line and "900,000" in line


@pytest.mark.parametrize("target", ["retrain/model.safetensors", "eval.json"])
def test_more_steps_than_max_hours_allow(copied, target):
    """The experiment has an estimate from fewer steps."""
    copied.edit(retrain={"steps": 100_000_000})
    line = refusal(copied, f"results/tiny/par/{target}")
    assert "retrain" in line and "max_hours = 24" in line and "would train for about" in line


def test_a_latency_table_of_another_version_of_torch(copied):
    path = copied.folder / "results/tiny/latency_table.parquet"
    table = pyarrow.parquet.read_table(path)
    note = {key: value.replace(b'"torch": "', b'"torch": "0.1 of ') for key, value in table.schema.metadata.items()}
    del note[b"checksum"]  # without a checksum the change is not found as damage
    pyarrow.parquet.write_table(table.replace_schema_metadata(note), path)
    line = refusal(copied, "results/tiny/target_0.7/search/metrics.json")
    assert "0.1 of " in line and "latency_table" in line


def test_a_target_that_no_network_meets(copied):
    line = refusal(copied, "results/tiny/target_0.001/architecture.yaml")
    assert "reachable range" in line and "0.001" in line
    assert not (copied.folder / "results/tiny/target_0.001/search/metrics.json").exists()


def test_a_loss_that_is_no_number_keeps_the_last_checkpoint(copied):
    copied.edit(retrain={"optimizer": {"lr": 1.0e6, "warmup_steps": 25}, "checkpoint_steps": 1})
    line = refusal(copied, "results/tiny/baseline-seed3/retrain/model.safetensors")
    assert "at step" in line and "learning rate" in line and "last good checkpoint" in line
    assert list(copied.folder.glob("scratch/tiny/baseline-seed3/retrain/**/*.safetensors"))


def test_an_experiment_that_exceeds_max_hours(workspace):
    line = refusal(workspace, "results/tiny/par/eval.json", "--config", "max_hours=1.0e-6")
    assert "max_hours" in line and "results/enwik8-mini/target_0.5/eval.json" in line
    assert not list(workspace.folder.glob("results/data/*")), "the text is not prepared"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_missing_device(copied):
    copied.edit(device="cuda")
    assert "cuda" in refusal(copied, "results/tiny/par/retrain/model.safetensors")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_an_execution_that_needs_another_device(workspace):
    workspace.edit(workload={"execution": "graph"})
    line = refusal(workspace, "results/tiny/latency_table.parquet")
    assert "graph needs a CUDA device" in line and "use eager or compiled" in line


def test_evaluation_reports_are_json(finished):
    for report in finished.folder.glob("results/tiny/*/eval.json"):
        json.loads(report.read_text(), parse_constant=pytest.fail)
