"""The frame of every job around its call of the library: a log, a mirror in MLflow, one line for a user's mistake.

Scripts of rules are adapters: ``with stage(snakemake) as job:`` read inputs, call one function, write outputs.
PyTorch is imported where it is used: no module of this package needs it to be imported itself.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

from planer import progress
from planer.config import Experiment, RuntimeConfig, sections
from planer.errors import Damaged, UserError
from planer.files import file_sha256, read_json, read_tokens, write_json, write_parquet
from planer.workflow import tracking
from planer.workflow.failures import MISTAKE, STATUS
from planer.workflow.tracking.variants import SHARED

if TYPE_CHECKING:
    from pandas import DataFrame

    from planer.data.texts import Texts
    from planer.models import LanguageModel
    from planer.runtime import Runtime
    from planer.training.checkpoint import Checkpoint
    from planer.training.loop import Record


UNTRACKED = ("max_hours", "patterns")
"""Params whose changes change no result: a limit, and the patterns, of which other params have what the job reads."""


class Job:
    """One run of one rule, seen from its script."""

    def __init__(self, snakemake, run: tracking.StageRun, root: type[RuntimeConfig]):
        import torch

        from planer.runtime import set_up_process

        self._snakemake = snakemake
        self.run = run
        given = snakemake.params.get("config", {}) | snakemake.params.get("patterns", {})
        self.config: SimpleNamespace = sections(given, root)
        """The sections of the config that the rule declared."""
        set_up_process()
        if threads := getattr(self.config, "threads", None):
            torch.set_num_threads(threads)  # latencies and the last bits of sums depend on it, so --cores must not

    @property
    def vocab_size(self) -> int:
        """Of the experiment's corpus."""
        return self._snakemake.params.vocab_size

    def texts(self) -> Texts:
        """Those splits of the prepared corpus that are among the inputs, memory-mapped.  Raises UserError for a damaged
        one."""
        from planer.data.texts import Texts

        inputs = self._snakemake.input
        splits = {split: read_tokens(inputs[split]) for split in ("train", "valid", "test") if inputs.get(split)}
        return Texts(self.vocab_size, **splits)

    def train(
        self, function: Callable, start, config, finish: Callable[[LanguageModel], dict] = lambda network: {}
    ) -> None:
        """Call a training stage of the library on a model and write what it returns.

        finish: called with the trained network before it is written; returns further metrics.
        """
        record = self.record()
        network, history, metrics = function(start, self.texts(), config, self.runtime(), record)
        self.write_training(network, history, metrics | finish(network), record.checkpoint)

    def runtime(self) -> Runtime:
        """Device of the job, dtype of its matrix products, and its seed: its own, or else the experiment's."""
        from planer.runtime import runtime_of

        return runtime_of(self.config, self._snakemake.params.get("seed", getattr(self.config, "seed", 0)))

    def record(self) -> Record:
        """Where a training stage resumes from, and the mirror of its history."""
        from planer.training.loop import Record

        return Record(self.checkpoint(), self.run.row)

    def write_training(self, network: LanguageModel, history: DataFrame, metrics: dict, checkpoint: Checkpoint) -> None:
        """Write what a training leaves, then delete its checkpoint."""
        from planer import models

        models.save(network, Path(self._snakemake.output.model).parent)
        self.write_history(history, metrics, checkpoint)

    def write_history(self, history: DataFrame, metrics: dict, checkpoint: Checkpoint) -> None:
        """Write what a training leaves beside its network, then delete its checkpoint."""
        outputs = self._snakemake.output
        write_parquet(outputs.history, history)
        write_json(outputs.metrics, metrics)
        checkpoint.delete()

    def parent(self) -> LanguageModel | None:
        """The trained baseline among the inputs; None for networks that are trained from random weights."""
        from planer import models

        path = self._snakemake.input.get("parent")
        return models.load(Path(path).parent) if path else None

    def checkpoint(self) -> Checkpoint:
        """Where a training stage resumes from.  A checkpoint of other params or other input files does not count."""
        from planer.training.checkpoint import Checkpoint

        params = sorted((name, value) for name, value in self._snakemake.params.items() if name not in UNTRACKED)
        digest = hashlib.sha256(repr(params).encode())
        for name, path in sorted(self._snakemake.input.items()):
            if name != "cost":  # an estimate in hours changes no result
                try:
                    digest.update(f"{name} {file_sha256(path)}".encode())
                except FileNotFoundError:
                    raise Damaged(path, "does not exist") from None
        folder = scratch_folder(*_identity(self._snakemake))
        return Checkpoint(folder, f"{self._snakemake.rule} {digest.hexdigest()[:12]}")


@contextmanager
def stage(snakemake, root: type[RuntimeConfig] = Experiment) -> Iterator[Job]:
    """Run the body with both output streams in the log file, and mirror its rows and output files in MLflow.

    root: the kind of experiment, whose sections the rule's params hold.

    The streams are redirected at the file descriptors, so that messages of compiled libraries land there too.
    Numbers in an output called metrics become the run's metrics.  What the job's progress lines say goes to the console
    too, now and then.  A UserError ends the job with STATUS and one line, the last one of the log, from where
    planer/workflow/failures.py fetches it; other exceptions keep their traceback, in the log.
    """
    from planer.runtime import device_name, resolve_device

    experiment, variant, rule = _identity(snakemake)
    label = f"{experiment} {rule}" if variant == SHARED else f"{experiment}/{variant} {rule}"
    progress.show_on(open(os.dup(2), "w"), label)  # noqa: SIM115  open until the process ends
    with open(snakemake.log[0], "w") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    sys.stdout.reconfigure(line_buffering=True)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("planer").setLevel(logging.INFO)  # which kernels run, among others
    started = time.perf_counter()
    try:
        with tracking.track(
            experiment=experiment,
            variant=variant,
            stage=rule,
            params=dict(snakemake.params.items()),
            tags={"device": device_name(resolve_device(snakemake.params.get("config", {}).get("device", "cpu")))},
        ) as run:
            yield Job(snakemake, run, root)
            for output in filter(os.path.isfile, snakemake.output):
                run.artifact(output)
            if snakemake.output.get("metrics"):
                run.metrics(read_json(snakemake.output.metrics))
    except UserError as error:
        try:
            print(f"{MISTAKE}{label}: {error}".replace("\n", " "), file=sys.stderr, flush=True)
        except OSError:  # the log's disk is full
            progress.tell(str(error))
        sys.exit(STATUS)
    done = f"done in {progress.duration(time.perf_counter() - started)}"
    print(f"{label}: {done}", flush=True)
    progress.tell(done)


def scratch_folder(experiment: str, variant: str, rule: str) -> Path:
    """Folder of the checkpoint of a job; not an output, because Snakemake deletes outputs of failed attempts."""
    return Path("scratch") / experiment / variant / rule


def _identity(snakemake) -> tuple[str, str, str]:
    """Experiment, variant and rule; the corpora belong to no experiment and share one called data."""
    wildcards = snakemake.wildcards
    variant = wildcards.get("variant", wildcards.get("dataset", SHARED))
    return wildcards.get("experiment", "data"), variant, snakemake.rule
