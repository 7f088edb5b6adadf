"""Every shipped experiment, planned but not run."""

from __future__ import annotations

import pytest

STAGES = ("retrain", "sparsify", "cluster_experts", "train_routers", "sample_architecture", "evaluate")


@pytest.mark.workflow
@pytest.mark.parametrize("experiment", ["demo", "enwik8-mini", "enwik8", "wt103"])
def test_a_target_needs_its_search_and_the_baseline(workspace, experiment):
    jobs = workspace.planned(f"results/{experiment}/target_0.5/eval.json")
    once = dict.fromkeys(("prepare_data", "profile_blocks", "estimate_cost", "search"), 1)
    assert jobs == once | dict.fromkeys(STAGES, 2)


@pytest.mark.workflow
def test_patterns_skip_the_search(workspace):
    jobs = workspace.planned("results/demo/par/eval.json", "results/demo/sandwich-seed2/eval.json")
    assert "search" not in jobs
    assert jobs["retrain"] == 3


@pytest.mark.workflow
def test_comparison_holds_the_default_variants(workspace):
    workspace.edit(default_variants=["baseline", "par", "target_0.5", "target_0.75"])
    jobs = workspace.planned("results/tiny/comparison.parquet")
    assert jobs["evaluate"] == 4
    assert jobs["search"] == 2
    assert jobs["check_additivity"] == 1
