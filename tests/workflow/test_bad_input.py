"""A wrong command is refused in one line, with exit code 1, before any job.  Unit tests check the lines."""

from __future__ import annotations

import shutil

import pytest

pytestmark = pytest.mark.workflow

TARGET = "results/tiny/baseline/eval.json"


def refusal(workspace, *arguments: str) -> str:
    """The one line that a refused command prints, without Snakemake's line about profiles."""
    before = set(workspace.folder.rglob("*"))
    result = workspace.run(*arguments)
    assert result.returncode == 1
    lines = [line for line in result.stdout.splitlines() if not line.startswith("Using workflow specific profile")]
    assert len(lines) == 1 and lines[0].startswith("planer: "), result.stdout
    made = set(workspace.folder.rglob("*")) - before
    assert {path.relative_to(workspace.folder).parts[0] for path in made} <= {".snakemake"}
    return lines[0]


def test_a_target_outside_its_range_is_refused(workspace):
    line = refusal(workspace, "results/demo/target_1.5/eval.json")
    assert "'1.5'" in line and "from 0.001 to 1" in line


def test_another_spelling_of_a_variant_is_refused(workspace):
    assert refusal(workspace, "--", "./results//demo/target_0.50/eval.json").endswith("write it target_0.5")


def test_an_unknown_experiment_is_refused(workspace):
    line = refusal(workspace, "results/dmeo/baseline/eval.json")
    assert "'dmeo'" in line and "demo" in line and "enwik8-mini" in line


def test_an_experiment_whose_name_is_a_command_is_refused(workspace):
    shutil.copy(workspace.experiment, workspace.experiment.with_name("$(touch x).yaml"))
    line = refusal(workspace, "results/$(touch x)/baseline/eval.json")
    assert "experiment '$(touch x)': names hold letters" in line


def test_a_file_that_no_rule_makes_is_refused(workspace):
    assert refusal(workspace, "results/tiny/baseline/evil.json").endswith(f"did you mean {TARGET}?")


def test_an_unknown_pattern_is_refused(workspace):
    line = refusal(workspace, "results/tiny/pattern_x/eval.json")
    assert line.endswith("variant pattern_x: patterns.others has no x; it has: none")


def test_an_unknown_key_is_refused(workspace):
    workspace.edit(search={"stpes": 3})
    line = refusal(workspace, TARGET)
    assert "search.stpes" in line and "did you mean search.steps" in line


def test_an_unknown_key_is_refused_for_the_default_target(workspace):
    assert "unknown key sede; did you mean seed?" in refusal(workspace, "--config", "sede=3")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("retrain={steps: many}", "retrain.steps is 'many'; it must be a whole number"),
        ("retrain={steps: 5, steps: 6}", "steps is given twice"),
        ("search={steps: 2}", "search: none of 1 epochs of 5 weight steps trains the architecture weights"),
        ("seed=010", "--config seed, line 1: 010, no decimal number"),
    ],
)
def test_a_wrong_value_on_the_command_line_is_refused(workspace, value, reason):
    assert reason in refusal(workspace, TARGET, "--config", value)


def test_a_wrong_overlay_file_is_refused(workspace):
    overlay = workspace.folder / "overlay.yaml"
    overlay.write_text("retrain:\n  steps: 5\nretrain:\n  batch: 2\n")
    line = refusal(workspace, TARGET, "--configfile", str(overlay))
    assert f"{overlay}, line 3: retrain is given twice, first in line 1" in line


def test_nested_values_and_text_on_the_command_line_are_read(workspace):
    """Snakemake gives nested numbers as text."""
    given = ["retrain={steps: 5, optimizer: {lr: 1e-3}}", "default_variants=[baseline, par]", "dtype=float32"]
    jobs = workspace.planned("results/tiny/comparison.parquet", "--config", *given)
    assert jobs["retrain"] == 2
