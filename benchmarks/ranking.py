"""What a search's signals are worth: python benchmarks/ranking.py, once the demo has searched; 24 short trainings.

Random networks of one latency are trained twice, with different random streams.  Kendall's tau says how well a signal
orders them by the final validation loss of the first training, 1 for the same order and 0 for chance: the loss of the
supernet on each network, that after every tenth of the first training, which is what a trial of a choice sees, and that
after every tenth of the second one.  The last of these is how well trainings repeat: what no signal can be expected to
surpass that knows the network alone, and not the random weights and the order of the text.
Results go to benchmarks/results/<processor>-<experiment>-ranking-<date>.json and, as a table, to standard output.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from scipy.stats import kendalltau  # noqa: E402

from benchmarks.output import RESULTS, table, write_results  # noqa: E402
from planer.architecture import Architecture  # noqa: E402
from planer.config import Experiment, derive_seed  # noqa: E402
from planer.latency.table import LatencyTable  # noqa: E402
from planer.parsing import build, merge  # noqa: E402
from planer.runtime import device_name, keep_freed_memory, resolve_device, resolve_dtype  # noqa: E402
from planer.search.constraints import limits_of  # noqa: E402
from planer.search.controls import random_network  # noqa: E402
from planer.search.replace_one import SupernetLoss  # noqa: E402
from planer.search.supernet import load_supernet  # noqa: E402
from planer.strict_yaml import read_yaml  # noqa: E402
from planer.training.checkpoint import Checkpoint  # noqa: E402
from planer.training.retrain import retrain  # noqa: E402
from planer.variant import spelled  # noqa: E402

PARTS = 10
"""A training is looked at after every tenth of its steps."""
RESAMPLES = 2000
"""Bootstrap samples of networks, for intervals of tau."""


def measured(config: Experiment, results: Path, target: float, count: int) -> Iterator[dict]:
    """A row per random network: its blocks, the loss of the supernet and of two trainings after every tenth, the end.

    results: the folder of the experiment; its corpora stand beside it.
    """
    device = resolve_device(config.device)
    dtype = resolve_dtype(config.dtype, device)
    table = LatencyTable.load(results / "latency_table.parquet")
    train, valid = (np.load(results.parent / f"data/{config.data.dataset}/{name}.npy") for name in ("train", "valid"))
    text, vocab_size = valid[: config.sample_architecture.tokens], table.identity["vocab_size"]
    weights = results / f"target_{spelled(target)}/search/supernet.safetensors"
    supernet = load_supernet(weights, config, vocab_size).to(device)
    supernet_loss = SupernetLoss(supernet, text, config.search, device, dtype)
    baseline = config.model.architecture(vocab_size, config.patterns.baseline)
    limit = limits_of(config, baseline, table, target)[0]
    options = [config.model.option(name) for name in config.design_space]
    training = dataclasses.replace(config.retrain, eval_steps=max(1, config.retrain.steps // PARTS))

    def trained(network: Architecture, seed: int) -> list[float]:
        """Validation losses after every tenth."""
        with tempfile.TemporaryDirectory() as folder:
            how = (training, seed, device, dtype, Checkpoint(folder, "ranking"))
            _, history, metrics = retrain(network, train, text, *how)
        return [*history["valid_nll"].dropna().tolist()[: PARTS - 1], metrics["valid_nll"]]

    for number in range(count):
        path = random_network(limit, len(baseline.blocks), derive_seed(config.seed, "ranking", number))
        network = config.model.architecture(vocab_size, tuple(options[option] for option in path))
        *parts, final = trained(network, config.seed)
        repeated = trained(network, derive_seed(config.seed, "repeated"))
        yield {
            "pattern": network.pattern,
            "supernet": supernet_loss(path),
            **{f"{(k + 1) / PARTS:.0%} of the training": nll for k, nll in enumerate(parts)},
            **{f"{(k + 1) / PARTS:.0%} of a repetition": nll for k, nll in enumerate(repeated)},
            "final": final,
        }


def agreement(rows: list[dict], seed: int) -> list[dict]:
    """Per signal: Kendall's tau with the final loss, and its 95 % percentile-bootstrap interval over networks."""
    values = {name: np.array([row[name] for row in rows]) for name in rows[0] if name != "pattern"}
    final, random = values.pop("final"), np.random.default_rng(seed)
    draws = [random.integers(len(rows), size=len(rows)) for _ in range(RESAMPLES)]
    return [
        {
            "signal": name,
            "tau": float(kendalltau(signal, final).statistic),
            "interval": np.nanpercentile(
                [kendalltau(signal[d], final[d]).statistic for d in draws], (2.5, 97.5)
            ).tolist(),
        }
        for name, signal in values.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", default="demo", help="default: %(default)s")
    parser.add_argument("--target", type=float, default=0.5, help="of a search that has ended (default: %(default)s)")
    parser.add_argument("--networks", type=int, default=12, help="default: %(default)s")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder (default: %(default)s)")
    options = parser.parse_args()
    files = (ROOT / "config/config.yaml", ROOT / f"config/experiments/{options.experiment}.yaml")
    config = build(Experiment, merge(*map(read_yaml, files)))
    folder = ROOT / "results" / options.experiment
    needed = f"results/{options.experiment}/target_{spelled(options.target)}/search/supernet.safetensors"
    if not (ROOT / needed).exists():
        sys.exit(f"{needed} does not exist; run snakemake --cores 2 {needed}")
    torch.set_num_threads(config.threads)
    keep_freed_memory()
    rows = list(measured(config, folder, options.target, options.networks))
    found = agreement(rows, config.seed)
    lines = [[x["signal"], f"{x['tau']:.2f}", f"{x['interval'][0]:.2f} to {x['interval'][1]:.2f}"] for x in found]
    table(f"{options.experiment}, {len(rows)} random networks at {options.target:g}", ["signal", "tau", "95 %"], lines)
    content = {"experiment": options.experiment, "target": options.target, "signals": found, "networks": rows}
    suffix = f"-{options.experiment}-ranking"
    write_results(options.results, device_name(resolve_device(config.device)), content, suffix)


if __name__ == "__main__":
    main()
