"""Do mixtures of experts pay where a network must be faster?  python benchmarks/mixtures.py; an hour of one core.

Networks at half the latency of a trained parent start from it and are distilled from it, all with the same text, steps
and teacher: whole pairs of its blocks, and the same with mixtures in place of feed-forward layers, paid for by heads.
Batches have 250 tokens per expert and step.  The networks take turns in equal slices of steps and are compared after
each slice, segment by segment of the same validation text.  The shares of the parent's latency are CPU times of one
core, measured in turn with random weights and after each slice with the trained ones.
The text is results/data/<dataset>, which snakemake --cores 2 results/data/<dataset>/train.npy makes.
Results go to benchmarks/results/<processor>-<experiment>-mixtures-balance-<weight>-<date>.json after every slice
and, as tables, to standard output.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
import pandas as pd
import torch

from benchmarks.output import command_line, positive, shipped_experiment, start, table, write_results
from planer.config import Experiment
from planer.config.lengths import VALID_BATCH
from planer.data.stream import EvalBatches
from planer.data.texts import Texts
from planer.latency.networks import timed_forward
from planer.models import LanguageModel
from planer.runtime import Runtime, device_name, set_up_process
from planer.specs import Architecture
from planer.training.checkpoint import Checkpoint
from planer.training.loop import Record
from planer.training.recipe import Recipe, Student
from planer.training.teacher import write_cache

RUNTIME = Runtime()
NOISE = 0.05
NETWORKS = {
    "dense": ("sfiis4fiis4f", 0.0),
    "dense, heads of the mixtures": ("s4fiis4fiis4f", 0.0),
    "one mixture": ("s7fiis4fiis4m1", 0.0),
    "all mixtures": ("s4m1iis4m1iis4m1", 0.0),
    "all mixtures, noisy copies": ("s4m1iis4m1iis4m1", NOISE),
}
"""Pattern, and the noise on the experts' copies.  Skips stand where the parent (sf)x5 has the pairs that are dropped.
The second network is faster than the others."""
NAMES = ", ".join(map(repr, NETWORKS))
TIMED_CALLS = 25
TOKENS_PER_EXPERT = 250


class Comparison:
    """The networks' training in turns, and what is found after each slice of it."""

    def __init__(self, config: Experiment, folder: Path, steps: int, scored: int, work: Path, names: Sequence[str]):
        """folder: of the text.  scored: tokens of the validation and of the test text that networks are compared on.
        names: of the networks, ``dense`` first."""
        self.train, valid, test = (np.load(folder / f"{name}.npy") for name in ("train", "valid", "test"))
        self.valid, self.test, self.config, self.work = valid[:scored], test[:scored], config, work
        self.vocab_size = int(max(self.train.max(), self.valid.max())) + 1
        batch = -(-TOKENS_PER_EXPERT * config.model.num_experts // config.distill.tgt_len)
        lengths = {"steps": steps, "eval_steps": steps, "checkpoint_steps": steps, "log_steps": 1}
        self.training = dataclasses.replace(config.distill, batch=batch, **lengths)
        self.architectures = {name: self._network(NETWORKS[name][0]) for name in names}
        self.parent_network = self._network(config.patterns.baseline)
        self.parent_nll: dict[str, np.ndarray] = {}
        self._students: dict[float, Student] = {}
        self._models: dict[str, LanguageModel] = {}

    def _network(self, pattern: str) -> Architecture:
        return self.config.model.architecture(self.vocab_size, pattern)

    def latency_shares(self, trained: bool) -> dict[str, float]:
        """CPU time of a call on the validation text over the parent's: medians over rounds.

        trained: with the weights of the last slice, instead of random ones whose routing is nearly balanced.
        """
        workload = self.config.workload
        length = workload.mem_len + workload.tgt_len + 1
        text = torch.from_numpy(self.valid[: workload.batch * length].astype(np.int64)).view(workload.batch, length)
        networks = self._models if trained else {"parent": self.parent_network, **self.architectures}
        calls = {name: timed_forward(network, workload, RUNTIME, "cached", text) for name, network in networks.items()}
        order, rounds = np.random.default_rng(0), []
        for _ in range(TIMED_CALLS):
            seconds = {}
            for name in order.permutation(list(calls)):
                began = time.process_time()
                calls[name]()
                seconds[name] = time.process_time() - began
            rounds.append(seconds)
        times = pd.DataFrame(rounds)[3:]  # the first ones fill caches
        return times.div(times["parent"], axis=0).median().to_dict()

    def train_parent(self, steps: int) -> None:
        """Train the parent, score it, and write its logits for the students."""
        lengths = {"steps": steps, "eval_steps": steps, "checkpoint_steps": steps}
        how = dataclasses.replace(self.config.retrain, **lengths)
        checkpoint = Checkpoint(self.work / "parent", "parent")
        valid = self.valid[: VALID_BATCH * how.tgt_len]  # networks are compared by segment_nll
        texts, runtime = Texts(self.vocab_size, self.train, valid), Runtime(seed=self.config.seed)
        parent, _, _ = Recipe(how, texts, runtime).train(self.parent_network, Record(checkpoint))
        self._models["parent"], self.parent_nll = parent, self.scores(parent)
        cache = self.work / "teacher.safetensors"
        write_cache(cache, parent, self.train, self.training, runtime)
        for noise in {NETWORKS[name][1] for name in self.architectures}:
            how = dataclasses.replace(self.training, expert_noise=noise)
            self._students[noise] = Student(parent, how, texts, runtime, cache=cache)

    def slices(self, ends: list[int]) -> Iterator[list[dict]]:
        """After each slice a row per network, from the step at which the slice before it ended."""
        for begin, end in zip([0, *ends], ends, strict=False):
            scores, rows = {}, []
            for name, network in self.architectures.items():
                checkpoint = Checkpoint(self.work / name.replace(",", ""), name)
                students = self._students[NETWORKS[name][1]]
                self._models[name], history, _ = students.train(network, Record(checkpoint, until=end))
                scores[name] = self.scores(self._models[name])
                rows.append({"network": name, "step": end, "load": busiest(history[history["step"] > begin])})
            shares = self.latency_shares(trained=True)
            for row in rows:
                row["latency"] = shares[row["network"]]
                for text, nll in scores[row["network"]].items():
                    row[text] = compared(nll, scores["dense"][text], self.parent_nll[text])
            yield rows

    def scores(self, model: LanguageModel) -> dict[str, np.ndarray]:
        """What ``segment_nll`` says of both texts."""
        return {"valid": self.segment_nll(model, self.valid), "test": self.segment_nll(model, self.test)}

    @torch.inference_mode()
    def segment_nll(self, model: LanguageModel, text: np.ndarray) -> np.ndarray:
        """Nats per token of every segment of a text, in the same order for all networks."""
        how = self.training
        model.eval()
        found, memory = [], None
        for inputs, targets, counted in EvalBatches(text, VALID_BATCH, how.tgt_len, how.mem_len):
            output = model(inputs, memory, mem_len=how.mem_len, attention="cached")
            memory = output.state
            if counted and inputs.shape[1] == how.tgt_len:
                found.append(model.nll(output.hidden, targets).mean(dim=1))
        return torch.cat(found).double().numpy()


def busiest(history: pd.DataFrame) -> list[float]:
    """Per mixture of experts the mean share of the tokens that its busiest expert received."""
    loads = history.filter(regex=r"^load_").mean()
    return loads.groupby(loads.index.str.extract(r"load_(\d+)_", expand=False).astype(int)).max().tolist()


def compared(nll: np.ndarray, dense: np.ndarray, parent: np.ndarray) -> dict:
    """Bits per character, and the differences from the dense network and the parent with their standard errors."""
    bits, scale = nll / math.log(2), 1 / math.log(2)
    row = {"bpc": float(bits.mean())}
    for name, other in (("dense", dense), ("parent", parent)):
        difference = (nll - other) * scale
        error = difference.std(ddof=1) / math.sqrt(len(difference))
        row |= {f"from_{name}": float(difference.mean()), f"from_{name}_se": float(error)}
    return row


def show(rows: list[dict], untrained: dict[str, float], comparison: Comparison) -> None:
    """A table of one slice."""
    lines = []
    for row in rows:
        name, load = row["network"], row["load"]
        network = comparison.architectures[name]
        size = f"{network.params() / 1e6:.2f} / {network.active_params() / 1e6:.2f}"
        scores = []
        for found in (row["valid"], row["test"]):
            error = f"{found['from_dense']:+.4f} ± {found['from_dense_se']:.4f}" if name != "dense" else ""
            scores += [f"{found['bpc']:.4f}", error]
        busy = " ".join(f"{share:.2f}" for share in load)
        shares = f"{untrained[name]:.3f}", f"{row['latency']:.3f}"
        lines.append([name, network.pattern, *shares, size, *scores, busy])
    texts = [f"{column}{text}" for text in ("valid", "test") for column in ("bpc, ", "over dense ± s.e., ")]
    head = ["", "pattern", "latency", "trained", "params / active (M)", *texts, "busiest expert"]
    table(f"after {rows[0]['step']} steps", head, lines)


def contents(options: argparse.Namespace, comparison: Comparison, shares: dict[str, float], parent: dict) -> dict:
    """What the results say before the first slice."""
    networks = [
        {
            "network": name,
            "pattern": network.pattern,
            "expert_noise": NETWORKS[name][1],
            "latency": shares[name],
            "params": network.params(),
            "active_params": network.active_params(),
        }
        for name, network in comparison.architectures.items()
    ]
    what = {"experiment": options.experiment, "training": dataclasses.asdict(comparison.training)}
    return {**what, "parent": parent, "networks": networks, "slices": []}


def run(options: argparse.Namespace, config: Experiment, work: Path) -> None:
    """Measure, train and write; work: a folder for checkpoints."""
    began = turn = time.monotonic()
    config = dataclasses.replace(config, distill=dataclasses.replace(config.distill, balance_weight=options.balance))
    folder = options.data / config.data.dataset
    comparison = Comparison(config, folder, options.steps, options.scored, work, options.networks)
    shares = comparison.latency_shares(trained=False)
    comparison.train_parent(options.parent_steps)
    bpc = float(comparison.parent_nll["valid"].mean() / math.log(2))
    parent = {"pattern": config.patterns.baseline, "steps": options.parent_steps, "bpc": bpc}
    print(f"parent {parent['pattern']} after {parent['steps']} steps: {bpc:.4f} bpc", flush=True)
    content = contents(options, comparison, shares, parent)
    for rows in comparison.slices([round(options.steps * (k + 1) / options.slices) for k in range(options.slices)]):
        content["slices"] += rows
        content["minutes"] = (time.monotonic() - began) / 60
        show(rows, shares, comparison)
        write_results(
            options.results,
            device_name(RUNTIME.device),
            content,
            f"-{options.experiment}-mixtures-balance-{options.balance:g}",
        )
        sys.stdout.flush()
        turn, took = time.monotonic(), time.monotonic() - turn
        if (turn - began + took) / 60 > options.minutes:
            break


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--experiment", default="enwik8-mini", help="default: %(default)s")
    parser.add_argument(
        "--networks",
        nargs="+",
        choices=NETWORKS,
        default=[*NETWORKS],
        metavar="NETWORK",
        help=f"{NAMES} (default: all)",
    )
    parser.add_argument(
        "--balance", type=float, default=0.1, help="weight of the load's balance (default: %(default)s)"
    )
    parser.add_argument("--data", type=Path, default=ROOT / "results/data", help="folder of prepared texts")
    parser.add_argument("--parent-steps", type=positive, default=900, help="default: %(default)s")
    parser.add_argument("--steps", type=positive, default=360, help="of every student (default: %(default)s)")
    parser.add_argument("--slices", type=positive, default=4, help="looks at the networks (default: %(default)s)")
    parser.add_argument("--scored", type=positive, default=100_000, help="tokens of a look (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no slice that would end after this")
    options = parser.parse_args()
    if options.networks[0] != "dense":
        parser.error("--networks: the first one must be dense, which the others are compared with")
    config = shipped_experiment(options.experiment)
    text = options.data / config.data.dataset / "train.npy"
    if not text.exists():
        sys.exit(f"{text} does not exist; run snakemake --cores 2 results/data/{config.data.dataset}/train.npy")
    torch.set_num_threads(1)
    set_up_process()
    with tempfile.TemporaryDirectory() as work:
        run(options, config, Path(work))


if __name__ == "__main__":
    start(main)
