"""Every stage and the report support a block of the user and sparse blocks."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import yaml

from planer.config.strict_yaml import read_yaml
from planer.parsing import merge
from tests.own_block import write_block
from tests.workflow.conftest import COSTS_MS, ROOT, set_costs
from tests.workflow.jobs import BASELINE, CORPUS, DATA, JOBS, RESULTS, TABLE, Job, Runner, network

pytestmark = pytest.mark.workflow
SPARSE = {"sparse_attention_4": 0.5, "sparse_conv_attention_4": 0.4, "sparse_feed_forward_16": 0.2}
"""Costs in ms, like those of an idle device."""
CHANGES = {
    "model": {"blocks": {"sparse_feed_forward": {"rank": 4}}},
    "patterns": {"baseline": "sgc4n16f"},
    "design_space": ["skip", "attention_2", "feed_forward", "moe_top1", "gate", *SPARSE],
    "profile_blocks": {"rounds": 3},
    "search": {"steps": 10, "epoch_steps": 5, "log_steps": 5},
    "retrain": {"steps": 4, "eval_steps": 4, "log_steps": 2},
    "train_routers": {"steps": 2, "log_steps": 2},
    "evaluate": {"tgt_len": 2048, "mem_len": 32, "taus": [0.0, 0.5], "latency_rounds": 3},
}
TRAINED = [f"{BASELINE}/{stage}" for stage in ("retrain", "cluster", "routers")]
STAGES = [
    Job("profile_blocks", {}, {"table": TABLE}),
    JOBS["pattern"],
    JOBS["baseline"],
    JOBS["search"],
    replace(JOBS["cluster"], input=network(f"{BASELINE}/retrain")),
    JOBS["routers"],
    Job(
        "evaluate",
        CORPUS
        | {
            "test": f"{DATA}/test.npy",
            "table": TABLE,
            "architecture": f"{BASELINE}/architecture.yaml",
            "baseline_architecture": f"{BASELINE}/architecture.yaml",
            "baseline_training": f"{BASELINE}/retrain/metrics.json",
            "stages": [f"{folder}/metrics.json" for folder in TRAINED],
        },
        {"report": f"{BASELINE}/eval.json"},
        "baseline",
    ),
    Job(
        "compare",
        JOBS["compare"].input
        | {
            "reports": [f"{BASELINE}/eval.json"],
            "histories": [f"{BASELINE}/retrain/history.parquet"],
            "searched": [],
            "pareto": [],
            "repeatability": [],
        },
        JOBS["compare"].output,
    ),
]


def test_every_stage_runs_a_block_of_the_user_and_sparse_blocks(finished, tmp_path):
    write_block(tmp_path / "own")
    for name in ("data", "tiny/additivity.json"):
        source, copy = finished.folder / "results" / name, tmp_path / "results" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, copy) if source.is_dir() else shutil.copy(source, copy)
    config = merge(*map(read_yaml, (ROOT / "config/config.yaml", ROOT / "tests/workflow/tiny.yaml")), CHANGES)
    runner = Runner(tmp_path, config, PLANER_BLOCKS=str(tmp_path / "own"))
    try:
        for job in STAGES:
            if job.rule == "evaluate":  # no layer is sparsified
                shutil.copytree(tmp_path / BASELINE / "retrain", tmp_path / BASELINE / "sparsify")
            ended = runner.run_job(job)
            assert ended["status"] == 0, (job.rule, ended)
            if job.rule == "profile_blocks":
                set_costs(tmp_path / TABLE, COSTS_MS | {"gate": 0.3} | SPARSE)
    finally:
        runner.close()
    network = yaml.safe_load((tmp_path / BASELINE / "retrain/architecture.yaml").read_text())
    assert network["pattern"] == "sgc4n16f" and network["blocks"][1] == {"kind": "gate"}
    assert network["blocks"][3]["rank"] == 4
    report = json.loads((tmp_path / BASELINE / "eval.json").read_text())
    assert report["architecture"]["blocks"][1] == {"kind": "gate", "option": "gate", "symbol": "g"}
    assert report["flops"]["counted"] == report["flops"]["closed_form"]
    figures = "".join(path.read_text() for path in (tmp_path / RESULTS / "figures").iterdir())
    assert all(colour in figures for colour in ("#123456", "#5d3a9b", "#f0e442"))
    assert (tmp_path / RESULTS / "report.html").exists()
