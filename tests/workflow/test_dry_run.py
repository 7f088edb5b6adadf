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
def test_a_search_waits_for_the_baseline_with_its_seed(workspace):
    """Unless it neither starts from it nor learns from it."""
    once = dict.fromkeys(("prepare_data", "profile_blocks", "estimate_cost", "search"), 1)
    wanted = "results/tiny/target_0.5-seed1/search/metrics.json"
    assert workspace.planned(wanted) == once | {"sample_architecture": 1, "retrain": 1}
    assert workspace.planned(wanted, "results/tiny/baseline-seed1/retrain/metrics.json")["retrain"] == 1
    workspace.edit(search={"start": "scratch", "distill": 0.0})
    assert workspace.planned(wanted) == once


@pytest.mark.workflow
def test_patterns_skip_the_search(workspace):
    jobs = workspace.planned("results/demo/par/eval.json", "results/demo/sandwich-seed2/eval.json")
    assert "search" not in jobs
    assert jobs["retrain"] == 3


@pytest.mark.workflow
@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("target_0.5-inherit", {"search": 1, "warm_start": 1, "sample_architecture": 2, "retrain": 1}),
        ("target_0.5-upcycle", {"search": 1, "warm_start": 1, "sample_architecture": 3, "retrain": 2}),
        ("target_0.5-distill", {"search": 1, "sample_architecture": 3, "retrain": 2}),
        ("isoparam_0.5-inherit-seed2", {"search": 1, "warm_start": 1, "sample_architecture": 2, "retrain": 1}),
        ("shared_0.5-inherit", {"search": 1, "warm_start": 1, "sample_architecture": 2, "retrain": 1}),
        ("par-upcycle", {"warm_start": 1, "sample_architecture": 3, "retrain": 2}),
        ("random_0.5_1-distill", {"sample_architecture": 3, "retrain": 2}),
    ],
)
def test_a_warm_start_needs_the_network_of_its_original_and_what_lends_weights(workspace, variant, expected):
    """The original itself is not trained: sharing its network is enough."""
    jobs = workspace.planned(f"results/tiny/{variant}/retrain/metrics.json")
    assert jobs == dict.fromkeys(("prepare_data", "profile_blocks", "estimate_cost"), 1) | expected


@pytest.mark.workflow
def test_evaluating_a_warm_start_takes_the_search_of_its_original(workspace):
    jobs = workspace.planned("results/tiny/target_0.5-inherit/eval.json", "results/tiny/target_0.5/eval.json")
    assert jobs["search"] == 1
    assert jobs["retrain"] == jobs["evaluate"] == jobs["sample_architecture"] == 3


@pytest.mark.workflow
def test_comparison_holds_the_default_variants(workspace):
    workspace.edit(default_variants=["baseline", "par", "target_0.5", "target_0.75"])
    jobs = workspace.planned("results/tiny/comparison.parquet")
    assert jobs["evaluate"] == 4
    assert jobs["search"] == 2
    assert jobs["check_additivity"] == 1


@pytest.mark.workflow
def test_the_report_takes_along_the_analyses_that_are_asked_for(workspace):
    workspace.edit(default_analyses=["pareto", "repeatability"])
    jobs = workspace.planned("results/tiny/comparison.parquet")
    assert jobs["pareto"] == jobs["repeatability"] == jobs["compare"] == 1


@pytest.mark.workflow
@pytest.mark.parametrize("experiment", ["demo", "tiny"])
def test_repeats_search_and_train_anew(workspace, experiment):
    jobs = workspace.planned(f"results/{experiment}/repeatability.json")
    once = dict.fromkeys(("prepare_data", "profile_blocks", "estimate_cost", "repeatability"), 1)
    assert jobs == once | {"search": 3} | dict.fromkeys(STAGES, 6)


@pytest.mark.workflow
@pytest.mark.parametrize("experiment", ["demo", "tiny"])
def test_a_shared_supernet_spares_searches(workspace, experiment):
    """Ten targets from one supernet; beside it two more searches, and the baseline and five networks to train.

    The mildest target has one network, not two: its own search is the shared one.
    """
    jobs = workspace.planned(f"results/{experiment}/pareto.json")
    once = dict.fromkeys(("prepare_data", "profile_blocks", "estimate_cost", "pareto"), 1)
    assert jobs == once | {"search": 3} | dict.fromkeys(STAGES, 6) | {"sample_architecture": 9 + 3 + 1}


@pytest.mark.workflow
def test_a_network_from_the_shared_supernet_needs_no_search_of_its_own(workspace):
    """A repeat of it takes the repeat of the search."""
    result = workspace.run("--dry-run", "results/tiny/shared_0.6-seed2/eval.json")
    assert result.returncode == 0, result.stdout
    assert "results/tiny/target_0.95-seed2/search/supernet.safetensors" in result.stdout
    assert "shared_0.6-seed2/search" not in result.stdout
