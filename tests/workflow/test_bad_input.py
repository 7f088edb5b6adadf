"""Mistakes of the user: one clear line, a non-zero exit, and nothing started."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.workflow


def complaint(workspace, *arguments: str) -> str:
    """The one line that a refused command prints."""
    result = workspace.run(*arguments)
    assert result.returncode != 0
    lines = [line for line in result.stdout.splitlines() if line.startswith("planer: ")]
    assert len(lines) == 1, result.stdout
    assert "Traceback" not in result.stdout
    assert not (workspace.folder / "results").exists()
    return lines[0]


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "abc"])
def test_target_outside_its_range(workspace, value):
    line = complaint(workspace, f"results/demo/target_{value}/eval.json")
    assert f"'{value}'" in line and "above 0 and up to 1" in line


def test_unknown_variant(workspace):
    line = complaint(workspace, "results/demo/basline/eval.json")
    assert "'basline'" in line and "baseline, sandwich, par, par_search, target_<t>" in line


def test_unknown_experiment(workspace):
    line = complaint(workspace, "results/dmeo/baseline/eval.json")
    assert "'dmeo'" in line and "demo" in line and "enwik8-mini" in line


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"search": {"stpes": 3}}, ["search.stpes", "did you mean search.steps"]),
        ({"retrain": {"steps": "many"}}, ["retrain.steps", "'many'", "whole number"]),
        ({"retrain": {"optimizer": {"lr": "1e-3"}}}, ["retrain.optimizer.lr", "'1e-3'", "1.0e-3"]),
        ({"model": {"d_model": 33}}, ["d_model", "33", "num_heads"]),
        ({"model": {"num_experts": 1}}, ["moe_top2", "top_k 2", "1 to 1"]),
        ({"cluster_experts": {"expert_size": 7}}, ["expert_size", "7", "d_inner", "64"]),
        ({"patterns": {"par": "(sfq)x2"}}, ["patterns.par", "'q'"]),
        ({"device": "tpu"}, ["device", "tpu"]),
        ({"default_variants": ["baseline", "target_7"]}, ["target_7"]),
    ],
)
def test_wrong_config(workspace, sections, words):
    workspace.edit(**sections)
    line = complaint(workspace, "results/tiny/baseline/eval.json")
    for word in words:
        assert word in line


def test_overlay_on_the_command_line_is_checked_too(workspace):
    assert "seed" in complaint(workspace, "results/tiny/baseline/eval.json", "--config", "sede=3")
