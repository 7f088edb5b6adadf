"""The jobs of dry runs, for experiments of the repository and for tiny."""

from __future__ import annotations

import pytest

from planer.files import write_json

STAGES = ("retrain", "sparsify", "cluster_experts", "train_routers", "evaluate")
ONCE = dict.fromkeys(("prepare_data", "profile_blocks", "estimate_cost", "pattern"), 1)
"""Jobs of every plan.  pattern makes the baseline's architecture."""
CACHED = {"teacher": 1}


@pytest.mark.workflow
@pytest.mark.parametrize(
    ("experiment", "cached"), [("demo", CACHED), ("enwik8-mini", CACHED), ("enwik8", {}), ("wt103", {})]
)
def test_a_target_needs_its_search_and_the_baseline(workspace, experiment, cached):
    """Logits of the teacher are stored if the file is not too large."""
    jobs = workspace.planned(f"results/{experiment}/target_0.5/eval.json")
    assert jobs == ONCE | {"search": 1, "choose": 1} | dict.fromkeys(STAGES, 2) | cached


@pytest.mark.workflow
def test_a_search_needs_the_baseline_with_its_seed(workspace):
    """A search that neither starts nor learns from the baseline does not need it."""
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
def test_a_student_needs_the_trained_baseline_and_its_logits(workspace, variant, expected):
    """Networks trained from random weights need neither."""
    jobs = workspace.planned(f"results/tiny/{variant}/retrain/metrics.json")
    assert jobs == dict.fromkeys(("prepare_data", "profile_blocks", "estimate_cost"), 1) | expected


@pytest.mark.workflow
def test_sparsification_without_a_teacher(workspace):
    for variant, trained in (("par-scratch", 1), ("continued", 2)):
        jobs = workspace.planned(f"results/tiny/{variant}/sparsify/metrics.json")
        assert jobs["sparsify"] == 1 and jobs["retrain"] == trained and "teacher" not in jobs


@pytest.mark.workflow
def test_a_comparison_needs_the_default_variants(workspace):
    workspace.edit(default_variants=["baseline", "par", "target_0.5", "target_0.75"])
    jobs = workspace.planned("results/tiny/comparison.parquet")
    assert jobs["evaluate"] == 4
    assert jobs["search"] == 2
    assert jobs["check_additivity"] == 1


@pytest.mark.workflow
def test_a_comparison_needs_the_default_analyses(workspace):
    workspace.edit(default_analyses=["pareto", "repeatability"])
    jobs = workspace.planned("results/tiny/comparison.parquet")
    assert jobs["pareto"] == jobs["repeatability"] == jobs["compare"] == 1


@pytest.mark.workflow
@pytest.mark.parametrize("experiment", ["demo", "tiny"])
def test_repeats_are_searched_and_trained(workspace, experiment):
    jobs = workspace.planned(f"results/{experiment}/repeatability.json")
    thrice = dict.fromkeys(("pattern", "teacher", "search", "choose"), 3)
    assert jobs == ONCE | {"repeatability": 1} | thrice | dict.fromkeys(STAGES, 6)


@pytest.mark.workflow
@pytest.mark.parametrize("experiment", ["demo", "tiny"])
def test_a_shared_supernet_replaces_searches(workspace, experiment):
    """Ten targets need one shared search and two separate ones, and the training of the baseline and five networks.

    The loosest target has one network, because its separate search is the shared one.
    """
    jobs = workspace.planned(f"results/{experiment}/pareto.json")
    assert jobs == ONCE | {"pareto": 1, "teacher": 1, "search": 3, "choose": 9 + 3} | dict.fromkeys(STAGES, 6)


@pytest.mark.workflow
def test_a_repeat_of_a_shared_network_uses_the_repeated_shared_search(workspace):
    result = workspace.run("--dry-run", "results/tiny/shared_0.6-seed2/eval.json")
    assert result.returncode == 0, result.stdout
    assert "results/tiny/target_0.95-seed2/search/supernet.safetensors" in result.stdout
    assert "shared_0.6-seed2/search" not in result.stdout


@pytest.mark.workflow
def test_an_estimate_for_other_settings_refuses_nothing(workspace):
    """The latency table will be measured again, and training estimated from it."""
    stages = ("search", "retrain", "distill", "sparsify", "train_routers")
    report = {"device": "another", "settings": 64 * "0", "tokens": dict.fromkeys(stages, 1)}
    path = workspace.folder / "results/tiny/cost.json"
    write_json(path, report | {"hours": dict.fromkeys((*stages, "total"), 1.0)})
    assert workspace.planned("results/tiny/par/eval.json")["estimate_cost"] == 1
