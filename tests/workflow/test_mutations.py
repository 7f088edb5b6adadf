"""Every file that the workflow reads, damaged at random: a job ends in one line, or does what it does without damage.

Scripts of rules run as they are, with a stand-in for Snakemake, each in a child of one process (forked.py).  Jobs are
those of the tiny experiment with fewer steps.  PLANER_MUTATIONS sets how many mutations there are.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from planer.files import UserError, read_json, read_yaml, write_json, write_yaml
from planer.latency.cost import load_cost
from planer.latency.table import LatencyTable
from planer.parsing import merge
from planer.strict_yaml import read_yaml as read_config
from tests.mutations import mutate
from tests.workflow.conftest import ROOT

pytestmark = pytest.mark.workflow
COUNT = int(os.environ.get("PLANER_MUTATIONS", "240"))
SHORT = {
    "workload": {"execution": "eager"},
    "search": {"steps": 4, "epoch_steps": 2, "log_steps": 2},
    "sample_architecture": {"num_solutions": 1, "num_random": 0, "rounds": 1, "tokens": 2048},
    "retrain": {"steps": 4, "eval_steps": 4, "log_steps": 2, "checkpoint_steps": 2},
    "sparsify": {"steps": 2, "log_steps": 2},
    "train_routers": {"steps": 2, "log_steps": 2},
    "evaluate": {"taus": [0.0, 0.5], "latency_rounds": 3},
    "pareto": {"targets": [0.5, 0.6, 0.7], "compared": [0.5, 0.6, 0.7]},
    "repeatability": {"variant": "target_0.5", "seeds": 2},
}
"""What the jobs do less of than the tiny experiment's."""
MEASURED = re.compile(r"seconds|_ms$|^latency$|^speed_up$|^measured$|^search$|latency|^checksum$|per_second")
"""Keys of numbers that no two runs share."""
RESULTS = "results/tiny"
TARGET, BASELINE, DATA = f"{RESULTS}/target_0.5", f"{RESULTS}/baseline", "results/data/pysource"
CORPUS = {split: f"{DATA}/{split}.npy" for split in ("train", "valid")}
TABLE = f"{RESULTS}/latency_table.parquet"


@dataclass(frozen=True)
class Job:
    """One job: its script, what it reads and what it writes."""

    rule: str
    input: dict
    output: dict
    variant: str = "target_0.5"
    params: dict = field(default_factory=dict)

    @property
    def files(self) -> list[str]:
        """Paths of all inputs, and of what is read beside them."""
        named = [path for value in self.input.values() for path in ([value] if isinstance(value, str) else value)]
        beside = [f"{DATA}/manifest.json"] if any(path.endswith(".npy") for path in named) else []
        if self.rule == "evaluate":
            beside += [f"{TARGET}/{s}/{f}" for s in ("retrain", "sparsify", "routers") for f in MODEL]
        return [path for path in dict.fromkeys(named + beside) if path != f"{RESULTS}/cost.json"]


MODEL = ("model.safetensors", "architecture.yaml")


def trained(folder: str) -> dict:
    """Outputs of a stage that trains."""
    names = {"architecture": MODEL[1], "model": MODEL[0], "history": "history.parquet", "metrics": "metrics.json"}
    return {name: f"{folder}/{file}" for name, file in names.items()}


def network(folder: str, names: tuple[str, str] = ("model", "architecture")) -> dict:
    return {name: f"{folder}/{file}" for name, file in zip(names, MODEL, strict=True)}


CHOSEN = {"architecture": f"{TARGET}/architecture.yaml"}
SUPERNET = {"supernet": f"{TARGET}/search/supernet.safetensors"}
RETRAINED = trained(f"{TARGET}/retrain")
TEACHER = ("teacher", "baseline_architecture")
STAGES = ("search", "sample", "retrain", "sparsify", "cluster", "routers")
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
JOBS = {
    "cost": Job("estimate_cost", {"table": TABLE}, {"report": f"{RESULTS}/cost.json"}),
    "additivity": Job("check_additivity", {"table": TABLE}, {"report": f"{RESULTS}/additivity.json"}),
    "search": Job(
        "search",
        {"train": CORPUS["train"], "table": TABLE},
        SUPERNET | {"trajectory": f"{TARGET}/search/trajectory.parquet", "metrics": f"{TARGET}/search/metrics.json"},
    ),
    "choice": Job(
        "sample_architecture",
        SUPERNET | {"table": TABLE, "valid": CORPUS["valid"]},
        CHOSEN | {"metrics": f"{TARGET}/sample/metrics.json"},
    ),
    "same": Job(
        "sample_architecture",
        {"original": CHOSEN["architecture"]},
        {"architecture": f"{TARGET}-upcycle/architecture.yaml", "metrics": f"{TARGET}-upcycle/sample/metrics.json"},
        "target_0.5-upcycle",
    ),
    "inherit": Job(
        "warm_start", SUPERNET | CHOSEN, {"weights": f"{TARGET}-inherit/warm_start.safetensors"}, "target_0.5-inherit"
    ),
    "upcycle": Job(
        "warm_start",
        CHOSEN | network(f"{BASELINE}/retrain", ("baseline", "baseline_architecture")),
        {"weights": f"{TARGET}-upcycle/warm_start.safetensors"},
        "target_0.5-upcycle",
    ),
    "retrain": Job("retrain", CORPUS | CHOSEN, RETRAINED, params={"start": "scratch"}),
    "warm": Job(
        "retrain",
        CORPUS | CHOSEN | {"weights": f"{TARGET}-upcycle/warm_start.safetensors"},
        trained(f"{TARGET}-upcycle/retrain"),
        "target_0.5-upcycle",
        {"start": "upcycle"},
    ),
    "distill": Job(
        "retrain",
        CORPUS | CHOSEN | network(f"{BASELINE}/retrain", TEACHER),
        trained(f"{TARGET}-distill/retrain"),
        "target_0.5-distill",
        {"start": "distill"},
    ),
    "sparsify": Job("sparsify", CORPUS | network(f"{BASELINE}/retrain"), trained(f"{BASELINE}/sparsify"), "baseline"),
    "cluster": Job(
        "cluster_experts",
        network(f"{BASELINE}/sparsify"),
        network(f"{BASELINE}/cluster")
        | {"labels": f"{BASELINE}/cluster/labels.parquet", "metrics": f"{BASELINE}/cluster/metrics.json"},
        "baseline",
        {"router_width": 8},
    ),
    "routers": Job(
        "train_routers", CORPUS | network(f"{BASELINE}/cluster"), trained(f"{BASELINE}/routers"), "baseline"
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
            "stages": [f"{TARGET}/{name}/metrics.json" for name in STAGES],
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


class Jobs:
    """A folder with all that the jobs read, and a process that runs them there."""

    def __init__(self, folder: Path, finished: Path):
        self.folder, self.pristine = folder / "jobs", folder / "pristine"
        for name in ("tiny", "data"):
            shutil.copytree(finished / "results" / name, self.pristine / "results" / name)
        self.config = merge(*map(read_config, (ROOT / "config/config.yaml", ROOT / "tests/workflow/tiny.yaml")), SHORT)
        self.config["threads"] = LatencyTable.load(self.pristine / TABLE).identity["threads"]
        self.references: dict[str, dict] = {}
        self._stand_ins()
        shutil.copytree(self.pristine, self.folder)
        environment = os.environ | {"MLFLOW_TRACKING_URI": "none", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.workflow.forked"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("pareto", "repeatability", "upcycle"):
            self.reference(name)
            for path in JOBS[name].output.values():
                (self.pristine / path).parent.mkdir(exist_ok=True)
                shutil.copy(self.folder / path, self.pristine / path)

    def _stand_ins(self) -> None:
        """Networks that nobody trained: those of target_0.5 and the baseline, a little worse."""
        for number, folder in enumerate([*SHARED, *OWN[1:], f"{TARGET}-seed1", f"{BASELINE}-seed1"]):
            source = BASELINE if folder.startswith(BASELINE) else TARGET
            evaluation = read_json(self.pristine / source / "eval.json")
            evaluation["variant"] = Path(folder).name
            evaluation["quality"]["final"]["test"]["bpc"] += 0.001 * number
            write_json(self.pristine / folder / "eval.json", evaluation)
            write_yaml(self.pristine / folder / MODEL[1], read_yaml(self.pristine / source / MODEL[1]))

    def run(self, name: str, **options: object) -> dict:
        """Run a job; its exit status, console and log."""
        job = JOBS[name]
        command = {
            "folder": str(self.folder),
            "script": f"workflow/scripts/{job.rule}.py",
            "rule": job.rule,
            "input": job.input,
            "output": job.output,
            "params": {"config": self.config, "seed": 7, "retrain_seed": 8, "vocab_size": 256, **job.params},
            "wildcards": {"experiment": "tiny", "variant": job.variant},
        }
        for path in job.output.values():
            path = self.folder / path
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            path.parent.mkdir(parents=True, exist_ok=True)
        self._process.stdin.write(json.dumps(command | options) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def outputs(self, name: str) -> dict:
        """What a job wrote, without what it measured."""
        return {path: _content(self.folder / path) for path in JOBS[name].output.values()}

    def reference(self, name: str) -> dict:
        """What the job writes when nothing is damaged."""
        if name not in self.references:
            ended = self.run(name)
            assert ended["status"] == 0, ended
            self.references[name] = self.outputs(name)
            self.restore(name)
        return self.references[name]

    def restore(self, name: str, *damaged: str) -> None:
        """Put back outputs and damaged files as they were."""
        for path in [*JOBS[name].output.values(), *damaged]:
            source, copy = self.pristine / path, self.folder / path
            if source.is_file():
                shutil.copy(source, copy)
        shutil.rmtree(self.folder / "scratch", ignore_errors=True)

    def left_over(self, name: str) -> list[str]:
        """Outputs and temporary files that are there."""
        outputs = [path for path in JOBS[name].output.values() if (self.folder / path).exists()]
        return outputs + [str(path) for path in self.folder.rglob("*.tmp")]

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def _content(path: Path) -> object:
    if path.name == "additivity.json":
        return json.loads(path.read_text())["attention"]
    if path.suffix == ".json":
        return _unmeasured(json.loads(path.read_text()))
    if path.is_dir():
        return {file.name: file.read_bytes() for file in path.iterdir()}
    return path.read_bytes()


def _unmeasured(value: object) -> object:
    if isinstance(value, dict):
        return {key: _unmeasured(child) for key, child in value.items() if not MEASURED.search(key)}
    return [_unmeasured(child) for child in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def jobs(finished, tmp_path_factory):
    jobs = Jobs(tmp_path_factory.mktemp("mutations"), finished.folder)
    yield jobs
    jobs.close()


COUNTED = sum(len(job.files) for job in JOBS.values())


def check(jobs: Jobs, name: str, path: str, how: str) -> None:
    """Run a job one of whose files is damaged."""
    place = f"{name} with {path} {how}"
    ended = jobs.run(name)
    said = ended["console"] + ended["log"]
    assert "Traceback" not in said, f"{place}: {said[-3000:]}"
    if ended["status"] == 0:
        found = jobs.outputs(name)
        jobs.restore(name, path)
        # Other contents of the right shape and without a checksum are another input, with another result.
        assert how.startswith("bare") or found == jobs.reference(name), f"{place}: another result"
        return
    lines = [line for line in ended["console"].splitlines() if line.startswith("planer: ")]
    assert ended["status"] == 1 and len(lines) == 1, f"{place}: {ended}"
    assert how.startswith("bare") or Path(path).name in lines[0], f"{place}: {lines[0]}"
    assert not jobs.left_over(name), place


@pytest.mark.parametrize("name", JOBS)
def test_a_damaged_file_ends_in_one_line_or_changes_nothing(jobs, name):
    files = JOBS[name].files
    for number in range(-(-COUNT * len(files) // COUNTED)):
        path = files[number % len(files)]
        how, content = mutate(Path(path), (jobs.pristine / path).read_bytes(), (name, number))
        (jobs.folder / path).write_bytes(content)
        try:
            check(jobs, name, path, how)
        finally:
            jobs.restore(name, path)


def test_a_missing_file_is_one_line(jobs):
    for name in ("cost", "cluster", "pareto", "upcycle"):
        path = JOBS[name].files[-1]
        (jobs.folder / path).unlink()
        ended = jobs.run(name)
        jobs.restore(name, path)
        assert ended["status"] == 1 and f"{path} does not exist; make it anew: snakemake" in ended["console"]


def test_a_damaged_checkpoint_changes_no_result(jobs):
    """The training goes on from it, or begins anew: on a CPU both end with the same bits."""
    expected = jobs.reference("retrain")
    assert jobs.run("retrain", killed=True)["status"] == 9
    path = jobs.folder / "scratch/tiny/target_0.5/retrain/checkpoint/state.safetensors"
    content = path.read_bytes()
    resumed = 0
    for number in range(12):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(mutate(path, content, number)[1] if number else content)
        ended = jobs.run("retrain")
        assert ended["status"] == 0, ended
        assert ("resuming at step 2/4" in ended["log"]) != ("not resuming from" in ended["log"]), ended["log"]
        assert jobs.outputs("retrain") == expected, number
        resumed += "resuming at step" in ended["log"]
    jobs.restore("retrain")
    assert 1 <= resumed < 12


@pytest.mark.parametrize("text", ["{", "", '{"hours": {"total": -1}}', "[" * 100_000, "\ufeff"])
def test_a_damaged_estimate_is_one_line_that_says_to_delete_it(tmp_path, text):
    path = tmp_path / "cost.json"
    path.write_text(text)
    with pytest.raises(UserError, match="cost.json .*; delete it: the next run makes it anew") as error:
        load_cost(path)
    assert "\n" not in str(error.value)


def test_a_damaged_estimate_stops_snakemake_before_any_job(workspace):
    path = workspace.folder / "results/tiny/cost.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"device": "here", "hours": NaN}')
    result = workspace.run("--dry-run", "results/tiny/par/eval.json")
    lines = [line for line in result.stdout.splitlines() if line.startswith("planer: ")]
    assert result.returncode and len(lines) == 1 and "delete it" in lines[0] and "Traceback" not in result.stdout
