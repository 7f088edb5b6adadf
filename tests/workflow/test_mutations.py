"""Every file that the workflow reads, damaged at random: a job ends in one line or has the results without damage.

Scripts of rules run in children of one process (forked.py).  The jobs are those of the tiny experiment with fewer
steps.  PLANER_MUTATIONS is the number of mutations.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from planer.config.strict_yaml import read_yaml as read_config
from planer.errors import UserError
from planer.files import file_sha256, read_json, read_yaml, write_json, write_yaml
from planer.latency.cost import load_cost
from planer.latency.table import LatencyTable
from planer.parsing import merge
from planer.workflow.failures import MISTAKE, STATUS
from tests.mutations import mutate
from tests.workflow.conftest import ROOT
from tests.workflow.jobs import BASELINE, DATA, JOBS, MODEL, OWN, SHARED, TABLE, TARGET, Runner

pytestmark = pytest.mark.workflow
COUNT = int(os.environ.get("PLANER_MUTATIONS", "208"))
BARE = 0.1
"""Share of mutations without a checksum.  Most of them are accepted, so that a job takes its whole time."""
SHORT = {
    "workload": {"execution": "eager"},
    "search": {"steps": 10, "epoch_steps": 5, "log_steps": 5},
    "candidates": {"proposers": {"argmax": 0, "random": 0}, "rounds": 1, "tokens": 2048},
    "retrain": {"steps": 4, "eval_steps": 4, "log_steps": 2, "checkpoint_steps": 2},
    "distill": {"steps": 4, "eval_steps": 4, "log_steps": 2, "checkpoint_steps": 2},
    "sparsify": {"steps": 2, "log_steps": 2},
    "train_routers": {"steps": 2, "log_steps": 2},
    "evaluate": {"taus": [0.0, 0.5], "latency_rounds": 3},
    "pareto": {"targets": [0.5, 0.6, 0.7], "compared": [0.5, 0.6, 0.7]},
    "repeatability": {"variant": "target_0.5", "seeds": 2},
}
"""Values that make the jobs shorter than those of the tiny experiment."""
MEASURED = re.compile(r"seconds|_ms$|^latency$|^speed_up$|^measured$|^search$|latency|^checksum$|per_second")
"""Keys of measured numbers, which differ between runs."""
REPEATED = {
    "additivity.json": ("attention", "execution"),
    "eval.json": ("experiment", "variant", "architecture", "quality", "selection", "flops", "reference"),
}
"""Parts of reports that do not depend on measurements."""
TOKENS = {"train": 8192, "valid": 2048, "test": 2048}


class Jobs(Runner):
    """A folder with all files that the jobs read, and a process that runs the jobs there."""

    def __init__(self, folder: Path, finished: Path):
        self.folder, self.pristine = folder / "jobs", folder / "pristine"
        for name in ("tiny", "data"):
            shutil.copytree(finished / "results" / name, self.pristine / "results" / name)
        self.config = merge(*map(read_config, (ROOT / "config/config.yaml", ROOT / "tests/workflow/tiny.yaml")), SHORT)
        self.config["threads"] = LatencyTable.load(self.pristine / TABLE).identity["threads"]
        self.references: dict[str, dict] = {}
        self._shorten_corpus()
        self._add_networks()
        shutil.copytree(self.pristine, self.folder)
        super().__init__(self.folder, self.config)
        for name in ("pareto", "repeatability", "teacher", "choice"):
            for path in JOBS[name].output.values():  # they are those of more steps
                (self.pristine / path).unlink(missing_ok=True)
            self.reference(name)
            for path in JOBS[name].output.values():
                (self.pristine / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(self.folder / path, self.pristine / path)

    def _shorten_corpus(self) -> None:
        manifest, folder = read_json(self.pristine / DATA / "manifest.json", "manifest"), self.pristine / DATA
        for split, count in TOKENS.items():
            path = folder / f"{split}.npy"
            np.save(path, np.load(path)[:count])
            manifest["tokens"][split] = count
            manifest["files_sha256"][path.name] = file_sha256(path)
        write_json(folder / "manifest.json", manifest)

    def _add_networks(self) -> None:
        """Made-up networks: those of target_0.5 and the baseline with slightly larger losses."""
        for number, folder in enumerate([*SHARED, *OWN[1:], f"{TARGET}-seed1", f"{BASELINE}-seed1"]):
            source = BASELINE if folder.startswith(BASELINE) else TARGET
            evaluation = read_json(self.pristine / source / "eval.json")
            evaluation["variant"] = Path(folder).name
            evaluation["quality"]["final"]["test"]["bpc"] += 0.001 * number
            write_json(self.pristine / folder / "eval.json", evaluation)
            write_yaml(self.pristine / folder / MODEL[1], read_yaml(self.pristine / source / MODEL[1]))

    def run(self, name: str, **options: object) -> dict:
        """Run a job and return its exit status, console and log."""
        return self.run_job(JOBS[name], **options)

    def outputs(self, name: str) -> dict:
        """The outputs of a job without measured numbers."""
        return {path: _content(self.folder / path) for path in JOBS[name].output.values()}

    def reference(self, name: str) -> dict:
        """The outputs of the job without damage."""
        if name not in self.references:
            ended = self.run(name)
            assert ended["status"] == 0, ended
            self.references[name] = self.outputs(name)
            self.restore(name)
        return self.references[name]

    def restore(self, name: str, *damaged: str) -> None:
        """Restore the outputs and damaged files."""
        for path in [*JOBS[name].output.values(), *damaged]:
            source, copy = self.pristine / path, self.folder / path
            if source.is_file():
                shutil.copy(source, copy)
        shutil.rmtree(self.folder / "scratch", ignore_errors=True)

    def left_over(self, name: str) -> list[str]:
        """Outputs and temporary files that exist."""
        outputs = [path for path in JOBS[name].output.values() if (self.folder / path).exists()]
        return outputs + [str(path) for path in self.folder.rglob("*.tmp")]


def _content(path: Path) -> object:
    if path.suffix == ".json":
        content = json.loads(path.read_text())
        return _unmeasured({key: content[key] for key in REPEATED.get(path.name, content)})
    if path.name == "training.safetensors":  # a checkpoint, whose metadata hold the time taken
        return {name: (values.shape, values.tobytes()) for name, values in load_file(path).items()}
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


def check(jobs: Jobs, name: str, path: str, mutation: str) -> None:
    """Run a job with a damaged file."""
    place = f"{name} with {path} {mutation}"
    ended = jobs.run(name)
    text = ended["console"] + ended["log"]
    assert "Traceback" not in text, f"{place}: {text[-3000:]}"
    if ended["status"] == 0:
        found = jobs.outputs(name)
        jobs.restore(name, path)
        # Other contents of the right shape and without a checksum are a valid input with another result.
        assert mutation.startswith("bare") or found == jobs.reference(name), f"{place}: another result"
        return
    lines = [line for line in ended["log"].splitlines() if line.startswith(MISTAKE)]
    assert ended["status"] == STATUS and len(lines) == 1, f"{place}: {ended}"
    assert mutation.startswith("bare") or Path(path).name in lines[0], f"{place}: {lines[0]}"
    assert not jobs.left_over(name), place


@pytest.mark.parametrize("name", JOBS)
def test_a_damaged_file_ends_in_one_line_or_changes_nothing(jobs, name):
    files = JOBS[name].files
    for number in range(-(-COUNT * len(files) // COUNTED)):
        path = files[number % len(files)]
        mutation, content = mutate(Path(path), (jobs.pristine / path).read_bytes(), (name, number), BARE)
        (jobs.folder / path).write_bytes(content)
        try:
            check(jobs, name, path, mutation)
        finally:
            jobs.restore(name, path)


def test_a_missing_file_is_one_line(jobs):
    last = [(name, JOBS[name].files[-1]) for name in ("cost", "cluster", "pareto")]
    for name, path in [*last, *(("student", JOBS["student"].input[file]) for file in ("teacher", "training"))]:
        (jobs.folder / path).unlink()
        ended = jobs.run(name)
        jobs.restore(name, path)
        assert ended["status"] == STATUS and f"{path} does not exist; make it anew: snakemake" in ended["log"]


@pytest.mark.parametrize(("name", "variant", "count"), [("baseline", "baseline", 7), ("student", "target_0.55", 4)])
def test_a_damaged_checkpoint_changes_no_result(jobs, name, variant, count):
    """The training resumes from it or starts again, with the same bits on a CPU.  A student starts again at the end of
    its proxy training."""
    expected = jobs.reference(name)
    assert jobs.run(name, killed=True)["status"] == 9
    path = jobs.folder / f"scratch/tiny/{variant}/retrain/checkpoint/state.safetensors"
    content = path.read_bytes()
    resumed = 0
    for number in range(count):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(mutate(path, content, number)[1] if number else content)
        ended = jobs.run(name)
        assert ended["status"] == 0, ended
        refused = "not resuming from" in ended["log"]
        assert ("resuming at step 2/4" in ended["log"]) == (name == "student" or not refused), ended["log"]
        assert jobs.outputs(name) == expected, number
        resumed += not refused
    jobs.restore(name)
    assert 1 <= resumed < count


@pytest.mark.parametrize("text", ["{", "", '{"hours": {"total": -1}}', "[" * 100_000, "\ufeff"])
def test_a_damaged_estimate_is_refused(tmp_path, text):
    path = tmp_path / "cost.json"
    path.write_text(text)
    with pytest.raises(UserError, match="cost.json .*; delete it: the next run makes it anew") as error:
        load_cost(path)
    assert "\n" not in str(error.value)


def test_a_damaged_estimate_is_refused_before_any_job(workspace):
    path = workspace.folder / "results/tiny/cost.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"device": "here", "hours": NaN}')
    result = workspace.run("--dry-run", "results/tiny/par/eval.json")
    lines = [line for line in result.stdout.splitlines() if line.startswith("planer: ")]
    assert result.returncode and len(lines) == 1 and "delete it" in lines[0] and "Traceback" not in result.stdout
