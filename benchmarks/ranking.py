"""What signals about networks are worth: python benchmarks/ranking.py, once the demo has searched; 12 trainings.

Random networks of one latency are trained with the experiment's recipe: they start from the trained baseline and learn
from it.  Kendall's tau says how well a signal orders them by the final validation loss, 1 for the same order and 0 for
chance.  Each network is trained once.  The signals are

    the loss after 5 to 40 % of the same training, which is what proxy training sees
    the loss before the first step
    the loss of the search's supernet
    parameters, active parameters and FLOPs, of which more should mean a lower loss

Results go to benchmarks/results/<processor>-<experiment>-ranking-<date>.json and, as a table, to standard output.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
import torch
from scipy.stats import kendalltau

from benchmarks.output import command_line, positive, shipped_experiment, start, table, write_results
from planer import models
from planer.config import Experiment
from planer.config.variant import spelled
from planer.data.texts import Texts
from planer.latency.table import LatencyTable
from planer.runtime import device_name, resolve_device, runtime_of, set_up_process
from planer.search.constraints import limits_of
from planer.search.proposers.random import random_network
from planer.search.proxy import ProxyTraining
from planer.search.scorers.replace_one import SupernetLoss
from planer.search.supernet import load_supernet
from planer.seed import derive_seed
from planer.training.checkpoint import Checkpoint
from planer.training.recipe import Student

SHARES = (0.05, 0.1, 0.2, 0.3, 0.4)
"""A training is looked at after these shares of its steps."""
SIZES = ("parameters", "active parameters", "FLOPs")
"""Signals that should fall where the loss rises."""
RESAMPLES = 2000
"""Bootstrap samples of networks, for intervals of tau."""


def recipe_of(config: Experiment, results: Path, valid: np.ndarray) -> Student:
    """How the experiment trains its students, with the seed of their retraining.

    results: the folder of the experiment; its corpora stand beside it.  valid: the validation text.
    """
    cache = results / "baseline/teacher/logits.safetensors"
    train = np.load(results.parent / f"data/{config.data.dataset}/train.npy", mmap_mode="r")
    runtime = runtime_of(config, derive_seed(config.seed, "retrain", 0))
    parent = models.load(results / "baseline/retrain")
    texts = Texts(parent.architecture.vocab_size, train, valid)
    return Student(parent, config.distill, texts, runtime, cache=cache if cache.exists() else None)


def measured(config: Experiment, results: Path, target: float, count: int) -> Iterator[dict]:
    """A row per random network: its blocks, its signals, and its final loss.  results: see recipe_of."""
    table = LatencyTable.load(results / "latency_table.parquet")
    valid = np.load(results.parent / f"data/{config.data.dataset}/valid.npy", mmap_mode="r")
    text, vocab_size = valid[: config.candidates.tokens], table.identity["vocab_size"]
    recipe = recipe_of(config, results, valid)
    supernet = load_supernet(results / f"target_{spelled(target)}/search/supernet.safetensors", config, vocab_size)
    supernet_loss = SupernetLoss(supernet.to(recipe.runtime.device), text, config.search, recipe.runtime)
    baseline = config.model.architecture(vocab_size, config.patterns.baseline)
    limit = limits_of(config, baseline, table, target)[0]
    options, work = [config.model.option(name) for name in config.design_space], config.workload
    for number in range(count):
        path = random_network(limit, len(baseline.blocks), derive_seed(config.seed, "ranking", number))
        network = config.model.architecture(vocab_size, tuple(options[option] for option in path))
        with tempfile.TemporaryDirectory() as folder:
            proxy = ProxyTraining(recipe, Checkpoint(folder, "ranking"))
            losses = {"before training": proxy.untrained(network, text)}
            losses |= {f"{share:.0%} of the training": proxy(network, share).mean for share in SHARES}
            final = proxy(network, 1).mean
        yield {
            "pattern": network.pattern,
            "supernet": supernet_loss(path),
            **losses,
            "parameters": network.params(),
            "active parameters": network.active_params(),
            "FLOPs": network.flops(work.batch, work.tgt_len, work.mem_len, work.attention),
            "final": final,
        }


def agreement(rows: list[dict], seed: int) -> list[dict]:
    """Per signal: Kendall's tau with the final loss, and its 95 % percentile-bootstrap interval over networks.

    A signal that is the same for all networks has tau 0.
    """
    values = {name: np.array([row[name] for row in rows]) for name in rows[0] if name != "pattern"}
    final, random = values.pop("final"), np.random.default_rng(seed)
    draws = [np.arange(len(rows)), *(random.integers(len(rows), size=len(rows)) for _ in range(RESAMPLES))]
    found = []
    for name, signal in values.items():
        sign = -1 if name in SIZES else 1
        taus = np.nan_to_num([sign * kendalltau(signal[draw], final[draw]).statistic for draw in draws])
        interval = np.percentile(taus[1:], (2.5, 97.5)).tolist()
        found.append({"signal": name, "tau": float(taus[0]), "interval": interval})
    return found


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--experiment", default="demo", help="default: %(default)s")
    parser.add_argument("--target", type=float, default=0.5, help="of a search that has ended (default: %(default)s)")
    parser.add_argument("--networks", type=positive, default=12, help="default: %(default)s")
    options = parser.parse_args()
    config = shipped_experiment(options.experiment)
    folder = ROOT / "results" / options.experiment
    wanted = (f"target_{spelled(options.target)}/search/supernet.safetensors", "baseline/retrain/model.safetensors")
    for needed in (f"results/{options.experiment}/{file}" for file in wanted):
        if not (ROOT / needed).exists():
            sys.exit(f"{needed} does not exist; run snakemake --cores 2 {needed}")
    torch.set_num_threads(config.threads)
    set_up_process()
    rows = list(measured(config, folder, options.target, options.networks))
    found = agreement(rows, config.seed)
    lines = [[x["signal"], f"{x['tau']:.2f}", f"{x['interval'][0]:.2f} to {x['interval'][1]:.2f}"] for x in found]
    table(f"{options.experiment}, {len(rows)} random networks at {options.target:g}", ["signal", "tau", "95 %"], lines)
    content = {"experiment": options.experiment, "target": options.target, "signals": found, "networks": rows}
    suffix = f"-{options.experiment}-ranking"
    write_results(options.results, device_name(resolve_device(config.device)), content, suffix)


if __name__ == "__main__":
    start(main)
