"""Memory of conversion at full size: python benchmarks/conversion_memory.py gpt2 vit

Builds networks with the shapes of known ones and random weights.  It takes a few steps of sparsification, clusters all
layers in one iteration, and takes a few steps of router training.  Each of these runs in a process of its own, on the
CPU in single precision, on random samples.
Prints the largest resident memory of every process beside the bar.
Results go to benchmarks/results/<processor>-conversion-memory-<date>.json.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import Tensor, nn

from benchmarks.output import command_line, positive, start, table, write_results
from planer.config import OptimizerConfig
from planer.config.pretrained import SiteClusterConfig, SiteRouterConfig, SiteSparsifyConfig
from planer.conversion.clusters import cluster_sites
from planer.conversion.dynamic import make_dynamic
from planer.conversion.site_routers import train_site_routers
from planer.conversion.site_sparsity import sparsify_sites
from planer.data.task_files import TaskFacts
from planer.runtime import Runtime, device_name, set_up_process
from planer.tasks.make_task import TASKS
from planer.tasks.pretrained_task import PretrainedTask
from planer.training.checkpoint import Checkpoint
from planer.training.loop import Record

BAR = 16.0
"""GiB of a common GPU, and of a laptop."""
STEPS = 2
ROUTER_WIDTH = 128
ADAMW = OptimizerConfig("adamw", 1e-5, 0.0, 0, (0.9, 0.999), 1e-8, 0.01, 1.0)


@dataclass(frozen=True)
class Shape:
    """A network and how it is trained.  Memory depends on samples of a pass, not on a batch's parts."""

    family: str
    """The beginning of the names of transformers' configuration and classes."""
    head: str
    """The end of the class's name."""
    facts: TaskFacts
    expert_size: int
    batch: int
    """Samples of a pass in sparsification."""
    router_batch: int
    keys: dict = field(default_factory=dict)
    """Of the configuration, where transformers' defaults are of another network."""

    def network(self) -> nn.Module:
        """With random weights, in eval mode."""
        import transformers

        torch.manual_seed(0)
        config = getattr(transformers, f"{self.family}Config")(**self.keys)
        return getattr(transformers, f"{self.family}{self.head}")(config).eval()


TEXT = TaskFacts("text", "nll", block_size=1024)
LABELS = ("a", "b", "c", "d", "e", "f")
HALF = (0.5, 0.5, 0.5)
LLAMA = {
    "vocab_size": 128_256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": True,
}
SHAPES = {
    "gpt2": Shape("GPT2", "LMHeadModel", TEXT, 24, 1, 8),
    "bert": Shape(
        "Bert",
        "ForSequenceClassification",
        TaskFacts("labelled_text", "accuracy", LABELS),
        24,
        16,
        64,
        {"num_labels": 6},
    ),
    "vit": Shape(
        "ViT",
        "ForImageClassification",
        TaskFacts("labelled_images", "accuracy", LABELS, mean=HALF, std=HALF, tokens_per_image=197),
        6,
        16,
        64,
        {"num_labels": 6},
    ),
    "llama-1b": Shape("Llama", "ForCausalLM", TEXT, 16, 1, 2, LLAMA),
}
"""GPT-2 of 124 million parameters, BERT-base, ViT-B/16 and the shape of Llama 3.2 1B."""


def samples(shape: Shape, vocab_size: int, count: int) -> dict[str, Tensor]:
    """Random samples of a split, as planer/data/task_files.py describes them."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % len(LABELS)
    if shape.facts.kind == "text":
        length = count * shape.facts.block_size + 1
        return {"tokens": torch.randint(vocab_size, (length,), generator=generator, dtype=torch.int32)}
    if shape.facts.kind == "labelled_images":
        return {"pixels": torch.randint(256, (count, 3, 224, 224), generator=generator).byte(), "labels": labels}
    ids = torch.randint(vocab_size, (count * 128,), generator=generator, dtype=torch.int32)
    return {"ids": ids, "starts": torch.arange(count + 1) * 128, "labels": labels}


def make_task(shape: Shape, model: nn.Module, batch: int, training, name: str) -> PretrainedTask:
    """Training samples for two batches, and one batch for validation."""
    vocab_size, kind = getattr(model.config, "vocab_size", 0), TASKS[shape.facts.kind]
    counts = {"train": 2 * batch, "valid": kind.eval_batch}
    splits = {split: samples(shape, vocab_size, count) for split, count in counts.items()}
    return kind(shape.facts, splits, training, Runtime(), name)


def at_once(shape: Shape, stage: str) -> int:
    """Samples in one pass."""
    return {"sparsify": shape.batch, "cluster": 0, "routers": shape.router_batch}[stage]


def run_sparsify(shape: Shape, model: nn.Module, folder: Path) -> None:
    """STEPS steps with validation before and after, and a checkpoint."""
    config = SiteSparsifyConfig(
        batch=shape.batch,
        accumulate=1,
        steps=STEPS,
        optimizer=ADAMW,
        log_steps=1,
        checkpoint_steps=STEPS,
        start="folder",
        on="relu",
        penalty="hoyer",
        displacement=-10.0,
        weight=1e-3,
        ramp="none",
    )
    task = make_task(shape, model, shape.batch, config, "sparsify")
    sparsify_sites(model, task, config, Runtime(), Record(Checkpoint(folder, "")))


def run_cluster(shape: Shape, model: nn.Module, folder: Path) -> None:
    """All layers, by their weights."""
    task = make_task(shape, model, 1, None, "cluster")
    config = SiteClusterConfig(
        expert_size=shape.expert_size, restarts=1, max_iterations=1, features="weights", tokens=4096
    )
    cluster_sites(model, task, config, 0)


def run_routers(shape: Shape, model: nn.Module, folder: Path) -> None:
    """STEPS steps of all routers; neurons are in experts as they come."""
    config = SiteRouterConfig(
        batch=shape.router_batch,
        steps=STEPS,
        optimizer=ADAMW,
        log_steps=1,
        checkpoint_steps=STEPS,
        width=ROUTER_WIDTH,
        target="norm",
    )
    make_dynamic(model, shape.expert_size, ROUTER_WIDTH, "norm")
    task = make_task(shape, model, shape.router_batch, config, "train_routers")
    train_site_routers(model, task, config, Runtime(), Record(Checkpoint(folder, "")))


STAGES = {"sparsify": run_sparsify, "cluster": run_cluster, "routers": run_routers}


def run_stage(shape: Shape, stage: str, folder: Path) -> None:
    """Run a stage in this process and print parameters and the largest resident memory in GiB."""
    set_up_process()
    model = shape.network()
    params = sum(weight.numel() for weight in model.parameters())
    STAGES[stage](shape, model, folder)
    print(params, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


def measured(name: str, stage: str, threads: int) -> dict:
    """A row: the stage in a process of its own, and its checkpoint in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, name, "--stage", stage, "--folder", folder]
        command += ["--threads", str(threads)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    row = {"network": name, "stage": stage, "samples": at_once(SHAPES[name], stage), "params": None, "gib": None}
    if done.returncode:
        return row
    params, gib = done.stdout.split()[-2:]
    return row | {"params": int(params), "gib": float(gib)}


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("networks", nargs="+", choices=SHAPES)
    parser.add_argument("--stage", choices=STAGES, help="run this stage here and print its memory")
    parser.add_argument("--folder", type=Path, help="of the checkpoint of --stage")
    parser.add_argument("--threads", type=positive, default=1, help="default: %(default)s")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.stage:
        run_stage(SHAPES[options.networks[0]], options.stage, options.folder)
        return
    rows = [measured(name, stage, options.threads) for name in options.networks for stage in STAGES]
    lines = []
    for row in rows:
        found = ["-", "-", "failed"]
        if row["gib"]:
            found = [f"{row['params']:,}", f"{row['gib']:.1f}", "yes" if row["gib"] <= BAR else "NO"]
        lines.append([row["network"], row["stage"], str(row["samples"]), *found])
    head = ["network", "stage", "samples at once", "parameters", "GiB", f"within {BAR:.0f} GiB"]
    table("Largest resident memory", head, lines)
    write_results(
        options.results, device_name(torch.device("cpu")), {"bar_gib": BAR, "rows": rows}, "-conversion-memory"
    )


if __name__ == "__main__":
    start(main)
