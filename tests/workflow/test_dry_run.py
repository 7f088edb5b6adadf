"""Every shipped experiment, planned but not run."""

from __future__ import annotations

import pytest

STAGES = ("retrain", "sparsify", "cluster_experts", "train_routers", "evaluate")
ONCE = dict.fromkeys(("prepare_data", "profile_blocks", "estimate_cost", "pattern"), 1)
"""What every plan holds: the last one is the baseline's architecture."""
CACHED = {"teacher": 1}


@pytest.mark.workflow
@pytest.mark.parametrize(
    ("experiment", "cached"), [("demo", CACHED), ("enwik8-mini", CACHED), ("enwik8", {}), ("wt103", {})]
)
def test_a_target_needs_its_search_and_the_baseline(workspace, experiment, cached):
    """Logits of the teacher are kept where the file is not too large."""
    jobs = workspace.planned(f"results/{experiment}/target_0.5/eval.json")
    assert jobs == ONCE | {"search": 1, "choose": 1} | dict.fromkeys(STAGES, 2) | cached


@pytest.mark.workflow
def test_a_search_waits_for_the_baseline_with_its_seed(workspace):
    """Unless it neither starts from it nor learns from it."""
    wanted = "results/tiny/target_0.5-seed1/search/metrics.json"
    assert workspace.planned(wanted) == ONCE | {"search": 1, "retrain": 1}
    assert workspace.planned(wanted, "results/tiny/baseline-seed1/retrain/metrics.json")["retrain"] == 1
    workspace.edit(search={"start": "scratch", "distill": 0.0})
    searched = ONCE | {"search": 1}
    del searched["pattern"]
    assert workspace.planned(wanted) == searched


@pytest.mark.workflow
def test_patterns_skip_the_search(workspace):
    jobs = workspace.planned("results/demo/par/eval.json", "results/demo/sandwich-seed2/eval.json")
    assert not {"search", "choose"} & set(jobs)
    assert jobs["retrain"] == jobs["pattern"] == 4 and jobs["teacher"] == 2, "two baselines"


@pytest.mark.workflow
@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("target_0.5", {"search": 1, "choose": 1, "teacher": 1, "retrain": 2, "pattern": 1}),
        ("target_0.5-scratch", {"search": 1, "choose": 1, "retrain": 1}),
        ("shared_0.5-scratch", {"search": 1, "choose": 1, "retrain": 1}),
        ("isoparam_0.5-seed2", {"search": 1, "choose": 1, "teacher": 1, "retrain": 2, "pattern": 1}),
        ("shallow_0.5", {"choose": 1, "teacher": 1, "retrain": 2, "pattern": 1}),
        ("random_0.5_1", {"choose": 1, "teacher": 1, "retrain": 2, "pattern": 1}),
        ("random_0.5_1-scratch", {"choose": 1, "retrain": 1}),
        ("keep_0.01", {"choose": 1, "teacher": 1, "retrain": 2, "pattern": 1}),
        ("par", {"teacher": 1, "retrain": 2, "pattern": 2}),
        ("par-scratch", {"retrain": 1, "pattern": 1}),
        ("continued", {"retrain": 2, "pattern": 2}),
        ("baseline", {"retrain": 1, "pattern": 1}),
    ],
)
def test_a_student_needs_the_trained_baseline_and_what_it_says(workspace, variant, expected):
    """Networks that are trained from random weights need neither."""
    jobs = workspace.planned(f"results/tiny/{variant}/retrain/metrics.json")
    assert jobs == dict.fromkeys(("prepare_data", "profile_blocks", "estimate_cost"), 1) | expected


@pytest.mark.workflow
def test_only_the_papers_method_makes_activations_sparse_without_a_teacher(workspace):
    for variant, trained in (("par-scratch", 1), ("continued", 2)):
        jobs = workspace.planned(f"results/tiny/{variant}/sparsify/metrics.json")
        assert jobs["sparsify"] == 1 and jobs["retrain"] == trained and "teacher" not in jobs


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
    thrice = dict.fromkeys(("pattern", "teacher", "search", "choose"), 3)
    assert jobs == ONCE | {"repeatability": 1} | thrice | dict.fromkeys(STAGES, 6)


@pytest.mark.workflow
@pytest.mark.parametrize("experiment", ["demo", "tiny"])
def test_a_shared_supernet_spares_searches(workspace, experiment):
    """Ten targets from one supernet; beside it two more searches, and the baseline and five networks to train.

    The loosest target has one network, not two: its separate search is the shared one.
    """
    jobs = workspace.planned(f"results/{experiment}/pareto.json")
    assert jobs == ONCE | {"pareto": 1, "teacher": 1, "search": 3, "choose": 9 + 3} | dict.fromkeys(STAGES, 6)


@pytest.mark.workflow
def test_a_network_from_the_shared_supernet_needs_no_search_of_its_own(workspace):
    """A repeat of it takes the repeat of the search."""
    result = workspace.run("--dry-run", "results/tiny/shared_0.6-seed2/eval.json")
    assert result.returncode == 0, result.stdout
    assert "results/tiny/target_0.95-seed2/search/supernet.safetensors" in result.stdout
    assert "shared_0.6-seed2/search" not in result.stdout
