"""Memory and time that jobs request, compared with what they use."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from peak_memory import experiment

from planer.config import Experiment
from planer.config.text import corpus_of
from planer.workflow.resources import STAGES, preparation, request, task_memory

ROOT = Path(__file__).parents[2]
SNAKEMAKE_MB = 260
"""Memory of the two Snakemake processes of a SLURM job."""
NODE_MB = 7500
"""Memory that a job may use on a node of 8 GB."""
VARIANTS = (
    "baseline",
    "par",
    "target_0.5",
    "isoparam_0.5",
    "par_search",
    "target_0.5-scratch",
    "shallow_0.5",
    "keep_0.01",
)


def shipped(name: str, device: str) -> Experiment:
    return dataclasses.replace(experiment(ROOT / f"config/experiments/{name}.yaml"), device=device)


@pytest.mark.parametrize("device", ["auto", "cpu"])
@pytest.mark.parametrize("name", ["demo", "enwik8-mini"])
def test_small_experiments_fit_on_a_small_node(name, device):
    config = shipped(name, device)
    asked = [request(stage, config, variant).mem_mb for stage in (*STAGES, "compare") for variant in VARIANTS]
    assert max(*asked, preparation(corpus_of(config.data)).mem_mb) <= NODE_MB


@pytest.mark.parametrize(
    ("stage", "changes"),
    [("search", []), ("retrain", ["retrain.batch=32", "retrain.tgt_len=128", "retrain.mem_len=384"])],
    ids=["weights", "activations"],
)
def test_requested_memory_is_enough_and_at_most_five_times_the_peak(stage, changes):
    """For the demo's supernet, which takes about 700 MiB, and for its baseline with longer segments."""
    file = ROOT / "config/experiments/demo.yaml"
    command = [sys.executable, "-m", "tests.unit.peak_memory", stage, file, *changes]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    config = dataclasses.replace(experiment(file, *changes), device="cpu")
    variant = "target_0.5" if stage == "search" else "baseline"
    asked, peak = request(stage, config, variant).mem_mb, int(done.stdout)
    assert peak + SNAKEMAKE_MB <= asked <= 5 * peak


def test_activations_count_only_on_a_cpu():
    def asked(device: str, batch: int) -> int:
        config = shipped("enwik8", device)
        config = dataclasses.replace(config, retrain=dataclasses.replace(config.retrain, batch=batch))
        return request("retrain", config).mem_mb

    assert asked("cpu", 64) > asked("cpu", 32) + 10_000
    assert asked("cuda", 64) == asked("cuda", 32) < 32_000


@pytest.mark.parametrize(
    ("stage", "section_name"),
    [("search", "search"), ("retrain", "distill"), ("choose", "distill")]
    + [("replace_projections", "projections"), *((name, name) for name in ("sparsify", "train_routers"))],
)
def test_time_grows_with_steps_and_shrinks_with_threads(stage, section_name):
    config = shipped("enwik8-mini", "cpu")
    section = getattr(config, section_name)
    longer = dataclasses.replace(config, **{section_name: dataclasses.replace(section, steps=10 * section.steps)})
    faster = dataclasses.replace(longer, threads=8)
    times = [request(stage, each, "target_0.5").minutes for each in (config, faster, longer)]
    assert times == sorted(times) and len(set(times)) == 3


def test_options_that_share_weights_need_less_memory():
    config = shipped("enwik8", "cuda")

    def asked(**changes: object) -> int:
        search = dataclasses.replace(config.search, start="scratch", **{"distill": 0.0} | changes)
        return request("search", dataclasses.replace(config, search=search), "target_0.5").mem_mb

    megabytes = 1.5 * 24 / 2**20
    positions, width = 24, config.model.d_model
    experts, narrow = (config.model.option(name).params(width) for name in ("moe_top1", "attention_4"))
    assert asked(weight_sharing="heads") - asked(weight_sharing="all") == pytest.approx(
        megabytes * positions * experts, abs=200
    )
    assert asked(weight_sharing="none") - asked(weight_sharing="heads") == pytest.approx(
        megabytes * positions * narrow * 7 / 4,
        abs=200,  # 1, 2 and 4 heads
    )
    assert asked(weight_sharing="heads", distill=0.5) > asked(weight_sharing="heads") + 1000  # the teacher


def test_an_unknown_network_counts_as_the_largest():
    config = shipped("enwik8", "cuda")
    assert request("retrain", config, "target_0.5").mem_mb > 2 * request("retrain", config, "baseline").mem_mb
    assert request("cluster_experts", config, "isoparam_0.5").minutes > request("cluster_experts", config).minutes


def test_the_teacher_of_sparsification_counts():
    config = shipped("enwik8", "cuda")
    taught, alone = (request("sparsify", config, name) for name in ("par", "par-scratch"))
    assert taught.mem_mb > alone.mem_mb and taught.minutes > alone.minutes


def test_a_longer_text_needs_more_memory_to_prepare():
    """A small one as much as the libraries; OpenWebText, 40 GB, over 1 TB."""
    assert task_memory(0) == task_memory(10**8) == 8000
    assert 1e6 < task_memory(40 * 10**9) < 1.5e6
