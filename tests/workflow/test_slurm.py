"""The resources that every rule requests from SLURM, whose programs are stubs here.  tests/slurm runs a real SLURM."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from planer.config import Experiment
from planer.config.corpora import CORPORA
from planer.parsing import build, merge
from planer.workflow.resources import preparation, request

from .conftest import ROOT, Workspace

TRAINED = ("architecture.yaml", "model.safetensors", "history.parquet", "metrics.json")
OF_VARIANT = {
    "search": [f"search/{name}" for name in ("supernet.safetensors", "trajectory.parquet", "metrics.json")],
    "pattern": ["architecture.yaml"],
    "teacher": ["teacher/logits.safetensors", "teacher/metrics.json"],
    "choose": ["architecture.yaml", "choice/training.safetensors", "choice/metrics.json"],
    "retrain": [f"retrain/{name}" for name in TRAINED],
    "replace_projections": [f"projections/{name}" for name in TRAINED],
    "sparsify": [f"sparsify/{name}" for name in TRAINED],
    "cluster_experts": [f"cluster/{name}" for name in (*TRAINED, "labels.parquet")],
    "train_routers": [f"routers/{name}" for name in TRAINED],
    "evaluate": ["eval.json"],
    "export": ["hf"],
}
"""Outputs of the rules for a variant.  The last file of each rule is the target."""
OF_EXPERIMENT = {
    "profile_blocks": "latency_table.parquet",
    "check_additivity": "additivity.json",
    "estimate_cost": "cost.json",
    "compare": "comparison.parquet",
    "repeatability": "repeatability.json",
    "pareto": "pareto.json",
}
VARIANTS = ("baseline", "target_0.5", "target_0.75", "target_0.95", "shared_0.5", "shared_0.75")
REPEATS = ("", "-seed1", "-seed2")
ON_GPU = ("profile_blocks", "check_additivity", "search", "teacher", "choose")
ON_GPU += ("retrain", "replace_projections", "sparsify", "train_routers", "evaluate")
ALONE = ("profile_blocks", "check_additivity", "choose", "evaluate")
ONE_CPU = ("prepare_data", "pattern", "compare", "repeatability", "pareto", "export")
THREADS = 3


def variant_of(rule: str) -> str:
    return {"pattern": "par", "teacher": "baseline", "retrain": "baseline"}.get(rule, "target_0.5")


def target_of(experiment: str, rule: str) -> str:
    if rule in OF_EXPERIMENT:
        return f"results/{experiment}/{OF_EXPERIMENT[rule]}"
    return f"results/{experiment}/{variant_of(rule)}/{OF_VARIANT[rule][-1]}"


def finish_all_but(workspace: Workspace, experiment: str, rule: str) -> None:
    """Make an experiment whose files all exist and are empty, without those that a rule writes."""
    values = yaml.safe_load(workspace.experiment.read_text())
    values["threads"] = THREADS
    values["device"] = "cpu" if experiment == "on-cpu" else "auto"
    values["pareto"] = {"targets": [0.5, 0.75, 0.95], "compared": [0.5, 0.75, 0.95]}
    workspace.experiment.with_stem(experiment).write_text(yaml.safe_dump(values))
    files = [file for stage, file in OF_EXPERIMENT.items() if stage != rule]
    for name in (f"{variant}{repeat}" for variant in VARIANTS for repeat in REPEATS):
        files += [f"{name}/{file}" for stage, found in OF_VARIANT.items() if stage != rule for file in found]
    for file in files:
        path = workspace.folder / "results" / experiment / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (0, 0))
    stages = dict.fromkeys(("search", "retrain", "distill", "sparsify", "train_routers"), 1)
    cost = {"device": "any", "hours": dict.fromkeys((*stages, "total"), 0.0), "tokens": stages}
    if rule != "estimate_cost":
        (workspace.folder / f"results/{experiment}/cost.json").write_text(json.dumps(cost))
        os.utime(workspace.folder / f"results/{experiment}/cost.json", (0, 0))


@pytest.fixture(scope="module")
def submissions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, str]]]:
    """Options of every sbatch call, by rule (on-cpu: retrain of an experiment on the CPU).

    The targets of one Snakemake run are one file of every rule, each of an experiment named after the rule.
    """
    workspace = Workspace(tmp_path_factory.mktemp("slurm"))
    folder = workspace.folder / "bin"
    folder.mkdir()
    stub = folder / "stub.sh"
    stub.write_text(Path(__file__).with_name("slurm_stub.sh").read_text())
    stub.chmod(0o755)
    for program in ("sbatch", "squeue", "scancel", "scontrol", "sinfo", "sacct", "sacctmgr", "sshare"):
        (folder / program).symlink_to(stub)
    rules = {rule: rule for rule in (*OF_EXPERIMENT, *OF_VARIANT)} | {"on-cpu": "retrain"}
    for name in ("train.npy", "valid.npy", "test.npy", "vocab.json"):
        path = workspace.folder / "results/data/pysource" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (0, 0))
    for experiment, rule in rules.items():
        finish_all_but(workspace, experiment, rule)
    targets = [target_of(experiment, rule) for experiment, rule in rules.items()]
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--directory", workspace.folder]
        + ["--workflow-profile", ROOT / "profiles/slurm"]
        + [*targets, "results/data/text8/manifest.json"],
        env=os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "MLFLOW_TRACKING_URI": "none"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    notes = list(folder.glob("sbatch.*.txt"))
    assert notes, done.stderr
    found: dict[str, list] = {}
    for note in notes:
        options = dict(read_options(note.read_text().splitlines()))
        rule, _, wildcards = options.pop("--comment").removeprefix("rule_").partition("_wildcards_")
        found.setdefault("on-cpu" if "on-cpu" in wildcards else rule, []).append(options)
    return found


def read_options(arguments: list[str]) -> Iterator[tuple[str, str]]:
    """Options of sbatch and their values, '' for an option without a value."""
    while arguments:
        option, *arguments = arguments
        name, equals, value = option.partition("=")
        if not equals and arguments and not arguments[0].startswith("-"):
            value, *arguments = arguments
        yield name, value


@pytest.mark.workflow
@pytest.mark.parametrize("rule", ["prepare_data", *OF_EXPERIMENT, *OF_VARIANT, "on-cpu"])
def test_the_requests_of_every_attempt_of_a_rule(submissions, rule):
    values = [yaml.safe_load((ROOT / path).read_text()) for path in ("config/config.yaml", "tests/workflow/tiny.yaml")]
    device = "cpu" if rule == "on-cpu" else "auto"
    experiment = build(Experiment, merge(*values, {"threads": THREADS, "device": device}))
    stage = "retrain" if rule == "on-cpu" else rule
    needed = preparation(CORPORA["text8"]) if rule == "prepare_data" else request(stage, experiment, variant_of(stage))
    expected = {"-p": "main", "--export": "ALL", "--parsable": "", "--requeue": ""}
    expected["--cpus-per-task"] = "1" if rule in ONE_CPU else str(THREADS)
    expected |= {"--gpus": "1"} if rule in ON_GPU else {"--ntasks": "1"}
    expected |= {"--exclusive": ""} if rule in ALONE else {}
    varying = ("--job-name", "--output", "--wrap", "-D")
    found = [{name: value for name, value in options.items() if name not in varying} for options in submissions[rule]]
    assert sorted(found, key=lambda options: int(options["--mem"])) == [
        expected | {"--mem": str(needed.mem_mb * growth // 2), "-t": str(needed.minutes * attempt)}
        for attempt, growth in ((1, 2), (2, 3), (3, 4))
    ]


@pytest.mark.workflow
def test_the_requests_of_all_rules_are_tested(submissions):
    """All rules but those of pretrained experiments."""
    others = {"pretrained.smk", "arms.smk"}
    text = "".join(path.read_text() for path in (ROOT / "rules").glob("*.smk") if path.name not in others)
    assert set(re.findall(r"^rule (\w+):", text, re.MULTILINE)) == submissions.keys() - {"on-cpu"}
