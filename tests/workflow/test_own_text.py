"""A text of the user in the workflow."""

from __future__ import annotations

import os

import pytest

pytestmark = pytest.mark.workflow
TARGET = "results/mine/baseline/retrain/model.safetensors"
PREPARED = "results/data/mine-text/manifest.json"


@pytest.fixture
def mine(workspace):
    """An experiment like tiny on a text of the user."""
    (workspace.folder / "my.txt").write_text("one line of many words\n" * 4000)
    workspace.experiment.with_name("mine.yaml").write_text("base: tiny\ndata: {text: '*.txt', tokenizer: words}\n")
    return workspace


def test_a_text_is_prepared_once_for_each_content(mine):
    result = mine.run(PREPARED)
    assert result.returncode == 0, result.stdout
    os.utime(mine.folder / "my.txt")
    assert "Nothing to be done" in mine.run("--dry-run", PREPARED).stdout
    (mine.folder / "my.txt").write_text("another line of many words\n" * 4000)
    os.utime(mine.folder / "my.txt", (1, 1))
    assert mine.planned(PREPARED) == {"prepare_data": 1}


def test_a_text_too_short_for_the_batch_is_refused_before_any_job(mine):
    """Unit tests check the other refusals."""
    result = mine.run(TARGET, "--config", "workload={batch: 4000}")
    (line,) = [line for line in result.stdout.splitlines() if not line.startswith("Using workflow specific profile")]
    assert result.returncode == 1 and line.startswith("planer: config: data: the test text has at most")
