"""The jobs that run again after a change."""

from __future__ import annotations

import shutil

import pytest

from tests.workflow.conftest import Workspace, copy_of

pytestmark = pytest.mark.workflow
TARGET = "results/tiny/comparison.parquet"
STUDENT = dict.fromkeys(("choose", "retrain", "sparsify", "cluster_experts", "train_routers", "evaluate", "compare"), 1)
CONVERSION = {"sparsify": 2, "cluster_experts": 2, "train_routers": 2, "evaluate": 2, "compare": 1}


@pytest.fixture(scope="module")
def copy(finished, tmp_path_factory) -> Workspace:
    return copy_of(finished, tmp_path_factory.mktemp("copied"))


@pytest.fixture
def copied(copy, finished) -> Workspace:
    """The copy with the finished workspace's configuration, which an earlier test may have changed."""
    shutil.copy(finished.experiment, copy.experiment)
    return copy


def test_finished_targets_do_not_run_again(copied):
    result = copied.run(TARGET, "results/tiny/target_0.5/eval.json")
    assert result.returncode == 0
    assert "Nothing to be done" in result.stdout


def test_newer_files_with_equal_content_run_nothing_again(copied):
    for path in sorted(copied.folder.glob("results/**/*")):
        path.touch()
    assert "Nothing to be done" in copied.run("--dry-run", TARGET).stdout


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"default_variants": ["baseline"]}, {"compare": 1}),
        ({"evaluate": {"latency_rounds": 6}}, {"evaluate": 2, "compare": 1}),
        ({"evaluate": {"taus": [0.0, 0.2]}}, {"train_routers": 2, "evaluate": 2, "compare": 1}),
        (
            {"cluster_experts": {"expert_size": 4}},
            {"cluster_experts": 2, "train_routers": 2, "evaluate": 2, "compare": 1},
        ),
        ({"train_routers": {"width": 12}}, {"train_routers": 2, "evaluate": 2, "compare": 1}),
        ({"sparsify": {"weight": 0.5}}, CONVERSION),
        ({"candidates": {"scores": "alpha"}}, STUDENT),
        # The sparsified baseline is taught by the baseline and uses only weight and temperature.
        ({"distill": {"balance_weight": 0.5}}, STUDENT),
        ({"distill": {"temperature": 2.0}}, CONVERSION | {"choose": 1, "retrain": 1}),
        # Patterns that no job reads, without new blocks.
        ({"patterns": {"others": {"mine": "(sf)x4"}, "par": "(sff)x1i"}}, {}),
        # Everything depends on the baseline.
        ({"retrain": {"balance_weight": 0.5}}, CONVERSION | {"search": 1, "teacher": 1, "choose": 1, "retrain": 2}),
    ],
)
def test_a_changed_key_runs_its_stage_and_later_stages_again(copied, sections, expected):
    copied.edit(**sections)
    assert copied.planned(TARGET) == expected


def test_a_pattern_runs_its_own_stages(copied):
    mine = "results/tiny/pattern_mine/eval.json"
    copied.edit(patterns={"others": {"mine": "(sf)x4"}})
    stages = ("pattern", "retrain", "sparsify", "cluster_experts", "train_routers", "evaluate")
    assert copied.planned(mine) == dict.fromkeys(stages, 1)


def test_a_block_that_only_a_pattern_has_is_measured(copied):
    copied.edit(patterns={"others": {"mine": "(s1f)x2"}})  # attention_1 is an option already
    assert copied.planned("results/tiny/latency_table.parquet") == {}
    copied.edit(patterns={"others": {"mine": "(sc4)x2"}})
    assert copied.planned("results/tiny/latency_table.parquet") == {"profile_blocks": 1}
