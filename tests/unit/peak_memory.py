"""Run a few steps of a stage of an experiment and print the peak memory of the process, in MiB.

python -m tests.unit.peak_memory <stage> <experiment's file> [<section>.<key>=<number> ...]
"""

from __future__ import annotations

import dataclasses
import resource
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import yaml

from planer.config import Experiment
from planer.config.corpora import CORPORA
from planer.data.texts import Texts
from planer.models import LanguageModel
from planer.parsing import build, merge
from planer.runtime import Runtime, set_up_process
from planer.search.latency_loss import LatencyLoss
from planer.search.phase1 import SearchTask
from planer.search.supernet import build_supernet
from planer.training.checkpoint import Checkpoint
from planer.training.loop import Record, fit
from planer.training.recipe import Recipe

CONFIG = Path(__file__).parents[2] / "config"
CPU, STEPS = torch.device("cpu"), 2


def experiment(file: str | Path, *changes: str) -> Experiment:
    """An experiment with changed values."""
    layers = [yaml.safe_load(path.read_text()) for path in (CONFIG / "config.yaml", Path(file))]
    for change in changes:
        name, value = change.split("=")
        section, key = name.split(".")
        layers.append({section: {key: yaml.safe_load(value)}})
    return build(Experiment, merge(*layers))


def run_search(config: Experiment, vocab_size: int, tokens: np.ndarray, checkpoint: Checkpoint) -> None:
    """Train the supernet with a teacher: weight steps and architecture steps alternate."""
    stage = dataclasses.replace(
        config.search, steps=STEPS, epoch_steps=1, frozen_share=0.0, alpha_share=0.99, log_steps=1, checkpoint_steps=2
    )
    supernet = build_supernet(config, vocab_size)
    costs = [1.0] * len(config.design_space)
    latency = LatencyLoss(costs, 1.0, 10.0, 0.5, stage.latency_loss, stage.latency_weight, CPU)
    parent = LanguageModel(config.model.architecture(vocab_size, config.patterns.baseline))
    runtime = Runtime()
    task = SearchTask(supernet.train(), latency, Texts(vocab_size, tokens), stage, runtime)
    fit(supernet, task, task.terms(parent), task.optimizers(), runtime, stage, Record(checkpoint))


def run_retrain(config: Experiment, vocab_size: int, tokens: np.ndarray, checkpoint: Checkpoint) -> None:
    """Train the baseline."""
    stage = dataclasses.replace(config.retrain, steps=STEPS, eval_steps=STEPS, log_steps=1, checkpoint_steps=2)
    baseline = config.model.architecture(vocab_size, config.patterns.baseline)
    Recipe(stage, Texts(vocab_size, tokens, tokens[:5000]), Runtime()).train(baseline, Record(checkpoint))


def main(stage: str, *given: str) -> None:
    config = experiment(*given)
    corpus = CORPORA[config.data.dataset]
    torch.set_num_threads(1)  # threads that wait for each other on a busy machine take minutes
    set_up_process()
    tokens = np.random.default_rng(0).integers(corpus.vocab_size, size=900_000).astype(np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        run = globals()[f"run_{stage}"]
        run(config, corpus.vocab_size, tokens, Checkpoint(Path(folder), "peak memory"))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)


if __name__ == "__main__":
    main(*sys.argv[1:])
