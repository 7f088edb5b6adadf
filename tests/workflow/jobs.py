"""Jobs of the tiny experiment: their scripts, inputs and outputs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path

from planer.config import TeacherConfig
from tests.workflow.conftest import ROOT
from tests.workflow.preloaded import python

RESULTS = "results/tiny"
TARGET, BASELINE, DATA = f"{RESULTS}/target_0.5", f"{RESULTS}/baseline", "results/data/pysource"
CORPUS = {split: f"{DATA}/{split}.npy" for split in ("train", "valid")}
TABLE = f"{RESULTS}/latency_table.parquet"


@dataclass(frozen=True)
class Job:
    """A job: its script, inputs and outputs."""

    rule: str
    input: dict
    output: dict
    variant: str = "target_0.5"
    params: dict = field(default_factory=dict)

    @property
    def files(self) -> list[str]:
        """Paths of all files that the job reads, named as inputs or not."""
        named = [path for value in self.input.values() for path in ([value] if isinstance(value, str) else value)]
        unnamed = [f"{DATA}/manifest.json"] if any(path.endswith(".npy") for path in named) else []
        if self.rule == "evaluate":
            unnamed += [f"{TARGET}/{s}/{f}" for s in ("retrain", "sparsify", "routers") for f in MODEL]
        return [path for path in dict.fromkeys(named + unnamed) if path != f"{RESULTS}/cost.json"]


class Runner:
    """A process of forked.py that runs jobs in a folder."""

    def __init__(self, folder: Path, config: dict, **environment: str):
        self.folder, self.config = folder, config
        quiet = {"MLFLOW_TRACKING_URI": "none", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        self._process = subprocess.Popen(
            [sys.executable if environment else python(), "-m", "tests.workflow.forked"],
            cwd=ROOT,
            env=os.environ | quiet | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run_job(self, job: Job, **options: object) -> dict:
        """Run a job and return its exit status, console and log."""
        training = {field.name: self.config["distill"][field.name] for field in fields(TeacherConfig)}
        command = {
            "folder": str(self.folder),
            "script": f"workflow/scripts/{job.rule}.py",
            "rule": job.rule,
            "input": job.input,
            "output": job.output,
            "params": {"config": self.config, "training": training, "seed": 7, "vocab_size": 256, **job.params},
            "wildcards": {"experiment": "tiny", "variant": job.variant},
        }
        for path in job.output.values():
            path = self.folder / path
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            path.parent.mkdir(parents=True, exist_ok=True)
        self._process.stdin.write(json.dumps(command | options) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


MODEL = ("model.safetensors", "architecture.yaml")


def trained(folder: str) -> dict:
    """Outputs of a stage that trains."""
    names = {"architecture": MODEL[1], "model": MODEL[0], "history": "history.parquet", "metrics": "metrics.json"}
    return {name: f"{folder}/{file}" for name, file in names.items()}


def network(folder: str, names: tuple[str, str] = ("model", "architecture")) -> dict:
    return {name: f"{folder}/{file}" for name, file in zip(names, MODEL, strict=True)}


CHOSEN = {"architecture": f"{TARGET}/architecture.yaml"}
SUPERNET = {"supernet": f"{TARGET}/search/supernet.safetensors"}
PARENT = network(f"{BASELINE}/retrain", ("parent", "parent_architecture"))
STAGES = ("search", "choice", "retrain", "sparsify", "cluster", "routers")
STUDENT = CORPUS | PARENT | {"teacher": f"{BASELINE}/teacher/logits.safetensors"}
SHORT = f"{RESULTS}/target_0.55"
"""A variant whose network is chosen by the short jobs."""
SHORT_CHOSEN = {
    "architecture": f"{SHORT}/architecture.yaml",
    "training": f"{SHORT}/choice/training.safetensors",
}
COMPARED = {
    "reports": [f"{folder}/eval.json" for folder in (BASELINE, TARGET)],
    "histories": [f"{folder}/retrain/history.parquet" for folder in (BASELINE, TARGET)],
    "trajectories": [f"{TARGET}/search/trajectory.parquet"],
    "searched": [f"{TARGET}/architecture.yaml"],
    "pareto": [f"{RESULTS}/pareto.json"],
    "repeatability": [f"{RESULTS}/repeatability.json"],
    "table": TABLE,
    "additivity": f"{RESULTS}/additivity.json",
}
SHARED = [f"{RESULTS}/shared_0.5", f"{RESULTS}/shared_0.6", f"{RESULTS}/target_0.7"]
OWN = [TARGET, f"{RESULTS}/target_0.6"]
CHOICE = {"batch": 16, "tgt_len": 512, "mem_len": 64, "clamp_len": 0, "taus": [0.0, 0.1, 0.5], "tolerance": 0.01}
JOBS = {
    "cost": Job(
        "estimate_cost", {"table": TABLE}, {"report": f"{RESULTS}/cost.json"}, params={"settings": 64 * "0"}
    ),
    "additivity": Job("check_additivity", {"table": TABLE}, {"report": f"{RESULTS}/additivity.json"}),
    "search": Job(
        "search",
        {"train": CORPUS["train"], "table": TABLE} | PARENT,
        SUPERNET | {"trajectory": f"{TARGET}/search/trajectory.parquet", "metrics": f"{TARGET}/search/metrics.json"},
    ),
    "pattern": Job("pattern", {"table": TABLE}, {"architecture": f"{BASELINE}/architecture.yaml"}, "baseline"),
    "teacher": Job(
        "teacher",
        {"train": CORPUS["train"]} | network(f"{BASELINE}/retrain"),
        {"logits": STUDENT["teacher"], "metrics": f"{BASELINE}/teacher/metrics.json"},
        "baseline",
    ),
    "choice": Job(
        "choose",
        SUPERNET | STUDENT | {"table": TABLE},
        SHORT_CHOSEN | {"metrics": f"{SHORT}/choice/metrics.json"},
        "target_0.55",
        {"train_seed": 9},
    ),
    "baseline": Job(
        "retrain",
        CORPUS | {"architecture": f"{BASELINE}/architecture.yaml"},
        trained(f"{BASELINE}/retrain"),
        "baseline",
    ),
    "student": Job("retrain", STUDENT | SHORT_CHOSEN, trained(f"{SHORT}/retrain"), "target_0.55", {"seed": 9}),
    "continued": Job(
        "retrain",
        CORPUS | PARENT | {"architecture": f"{BASELINE}/architecture.yaml"},
        trained(f"{RESULTS}/continued/retrain"),
        "continued",
    ),
    "sparsify": Job(
        "sparsify",
        CORPUS | PARENT | network(f"{BASELINE}/retrain"),
        trained(f"{BASELINE}/sparsify"),
        "baseline",
        {"teaching": {"weight": 0.5, "temperature": 1.0}},
    ),
    "cluster": Job(
        "cluster_experts",
        network(f"{BASELINE}/sparsify"),
        network(f"{BASELINE}/cluster")
        | {"labels": f"{BASELINE}/cluster/labels.parquet", "metrics": f"{BASELINE}/cluster/metrics.json"},
        "baseline",
    ),
    "routers": Job(
        "train_routers",
        CORPUS | network(f"{BASELINE}/cluster") | network(f"{BASELINE}/retrain", ("dense", "dense_architecture")),
        trained(f"{BASELINE}/routers"),
        "baseline",
        {"choice": CHOICE},
    ),
    "evaluate": Job(
        "evaluate",
        CORPUS
        | CHOSEN
        | {
            "test": f"{DATA}/test.npy",
            "table": TABLE,
            "baseline": f"{BASELINE}/eval.json",
            "baseline_architecture": f"{BASELINE}/architecture.yaml",
            "baseline_training": f"{BASELINE}/retrain/metrics.json",
            "stages": [f"{BASELINE}/teacher/metrics.json", *(f"{TARGET}/{name}/metrics.json" for name in STAGES)],
        },
        {"report": f"{TARGET}/eval.json"},
    ),
    "pareto": Job(
        "pareto",
        {
            "architectures": [f"{folder}/architecture.yaml" for folder in SHARED],
            "reports": [f"{folder}/eval.json" for folder in SHARED + OWN],
        },
        {"report": f"{RESULTS}/pareto.json", "figure": f"{RESULTS}/pareto.svg"},
    ),
    "repeatability": Job(
        "repeatability",
        {name: [f"{folder}{end}/eval.json" for end in ("", "-seed1")] for name, folder in
         (("variant", TARGET), ("baseline", BASELINE))},
        {"report": f"{RESULTS}/repeatability.json"},
    ),
    "compare": Job(
        "compare",
        COMPARED,
        {
            "comparison": f"{RESULTS}/comparison.parquet",
            "report": f"{RESULTS}/report.html",
            "figures": f"{RESULTS}/figures",
        },
    ),
}  # fmt: skip
