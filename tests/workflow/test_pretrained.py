"""Tiny pretrained experiments of three families in the workflow, and the refusal of wrong ones."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import yaml

from planer.files import read_json

pytest.importorskip("transformers", reason="the package transformers is not installed")

from tests.unit.tiny_pretrained import save  # noqa: E402

ADAPTED = {
    "finetune": {"batch": 4, "steps": 6, "log_steps": 3},
    "projections": {"batch": 4, "steps": 4, "log_steps": 2},
    "sparsify": {"batch": 4, "steps": 4, "log_steps": 2},
    "cluster_experts": {"expert_size": 4},
    "train_routers": {"batch": 4, "steps": 4, "width": 8, "log_steps": 2},
    "thresholds": {"tokens": 100, "shares": [0.5]},
    "evaluate": {"selectors": ["dynamic_k"], "taus": [0.3], "batches": [1], "latency_rounds": 3, "bounds": []},
}
EXPERIMENTS = {
    "tiny-bert": {
        "pretrained": {"folder": "bert"},
        "task": {"kind": "labelled_text", "train": "data.csv", "split": {"valid": 0.2, "test": 0.2}, "max_length": 16},
        "arms": {"d2dmoe": {"method": "experts", "projections": {"replace": ["query", "output"]}}},
    },
    "tiny-gpt2": {
        "pretrained": {
            "config": {
                "model_type": "gpt2",
                "vocab_size": 96,
                "n_embd": 16,
                "n_layer": 2,
                "n_head": 2,
                "n_positions": 32,
            },
            "tokenizer": "bert",
        },
        "task": {"kind": "text", "train": "text.txt", "block_size": 16},
        "arms": {"threshold": {"method": "threshold"}},
    },
    "tiny-vit": {
        "pretrained": {
            "config": {
                "model_type": "vit",
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": 8,
                "patch_size": 4,
                "num_channels": 1,
            }
        },
        "task": {
            "kind": "labelled_images",
            "train": "train-images-idx3-ubyte.gz",
            "split": {"valid": 0.2, "test": 0.2},
        },
        "arms": {
            "d2dmoe": {"method": "experts"},
            "small": {"method": "experts", "cluster_experts": {"expert_size": 2}},
            # This is also the name of a stage.
            "routers": {"method": "experts", "cluster_experts": {"expert_size": 2}, "evaluate": {"taus": [0.1]}},
        },
    },
}
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog", "in", "an", "other", "text"]


def write_data(folder: Path) -> None:
    """Write texts with and without a fox, a longer text, and images of three labels."""
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(WORDS, random.integers(3, 12))) for _ in range(40)]
    rows = [f"{text},{'fox' if 'fox' in text else 'none'}" for text in texts]
    (folder / "data.csv").write_text("\n".join(["text,label", *rows]))
    (folder / "text.txt").write_text("\n".join(texts * 6))
    images, labels = random.integers(0, 256, (40, 10, 10), dtype=np.uint8), np.arange(40, dtype=np.uint8) % 3
    for name, array in (("images-idx3", images), ("labels-idx1", labels)):
        header = bytes((0, 0, 8, array.ndim)) + b"".join(size.to_bytes(4, "big") for size in array.shape)
        (folder / f"train-{name}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))


@pytest.fixture
def experiments(workspace):
    """The workspace with data, a saved BERT, and the three experiments."""
    write_data(workspace.folder)
    save("bert", workspace.folder / "bert")
    for name, values in EXPERIMENTS.items():
        file = workspace.experiment.with_name(f"{name}.yaml")
        file.write_text(yaml.safe_dump(ADAPTED | values))
    return workspace


@pytest.mark.workflow
def test_three_families_from_data_to_report_and_export(experiments):
    wanted = ("tiny-bert/arms.html", "tiny-bert/d2dmoe/hf", "tiny-gpt2/threshold/eval.json")
    wanted += ("tiny-vit/dense/finetune/metrics.json",)
    result = experiments.run(*(f"results/{path}" for path in wanted), mlflow=True)
    assert result.returncode == 0, result.stdout
    assert "warning: MLflow" not in result.stdout
    folder = experiments.folder / "results"
    assert 0 <= read_json(folder / "tiny-vit/dense/finetune/metrics.json")["valid_accuracy"] <= 1
    for path in ("tiny-bert/d2dmoe", "tiny-gpt2/threshold"):
        evaluation = read_json(folder / path / "eval.json", "arm")
        assert evaluation["variant"] == path.partition("/")[2] and evaluation["rows"]
    assert (folder / "tiny-bert/d2dmoe/hf/README.md").is_file()
    reports = {arm: read_json(folder / f"tiny-bert/{arm}/eval.json") for arm in ("dense_continued", "dense", "d2dmoe")}
    assert [reports[arm]["reference"]["variant"] for arm in reports] == ["dense", "dense", "dense_continued"]
    for split in ("valid", "test"):
        assert reports["d2dmoe"]["reference"][split] == reports["dense_continued"]["quality"][split]
        assert reports["dense_continued"]["reference"][split] == reports["dense"]["quality"][split]
    assert not experiments.planned("results/tiny-bert/arms.html"), "nothing is left to do"
    arms = experiments.planned(*(f"results/tiny-vit/{arm}/eval.json" for arm in ("d2dmoe", "small", "routers")))
    shared = {"sparsify_sites": 2, "cluster_sites": 2, "train_site_routers": 2, "evaluate_arm": 3}
    assert arms == shared, "the arms share one sparsified network, and two share a split"
    (experiments.folder / "data.csv").write_text((experiments.folder / "data.csv").read_text() + "\nthe fox,fox")
    assert "prepare_task" in experiments.planned("results/tiny-bert/dense/finetune/metrics.json")
    labels = experiments.folder / "train-labels-idx1-ubyte.gz"
    labels.write_bytes(labels.read_bytes()[:-8])
    assert "prepare_task" in experiments.planned("results/tiny-vit/dense/finetune/metrics.json")
    tokenizer = experiments.folder / "bert/tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + "\n")
    for experiment in ("tiny-bert", "tiny-gpt2"):
        assert "prepare_model" in experiments.planned(f"results/{experiment}/dense/finetune/metrics.json")


@pytest.mark.workflow
@pytest.mark.parametrize("experiment", ["gpt2-openwebtext", "bert-carer", "vit-imagenet"])
def test_the_papers_experiments_are_planned_and_name_the_missing_network(workspace, experiment):
    """Those that sparsify the folder itself need no fine-tuned network."""
    target = f"results/{experiment}/d2dmoe/eval.json"
    stages = ("prepare_model", "prepare_task", "sparsify_sites", "cluster_sites", "train_site_routers", "evaluate_arm")
    more = {"finetune": 1, "distil_projections": 1} if experiment == "vit-imagenet" else {}
    assert workspace.planned(target) == dict.fromkeys(stages, 1) | {"sparsify_sites": 2} | more
    result = workspace.run(target)
    last = result.stdout.strip().splitlines()[-1]
    assert result.returncode != 0
    assert last.startswith(f"planer: {experiment} prepare_model: pretrained.folder: models/"), result.stdout
    assert "is no folder; name one that save_pretrained wrote" in last


@pytest.mark.workflow
@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            "results/tiny-bert/magic/eval.json",
            "unknown variant 'magic'; allowed: dense_continued, dense, d2dmoe; add -seed<k>",
        ),
        ("results/tiny-vit/small/sparsify/metrics.json", "small has the same sparsify as d2dmoe, whose files it uses"),
        (
            "results/tiny-vit/d2dmoe/projections/metrics.json",
            "has no stage projections; its stages: sparsify, ",
        ),
        ("results/tiny/dense/eval.json", "unknown variant 'dense'"),
        ("results/data/tiny-task/manifest.json", "unknown dataset 'tiny-task'"),
        ("results/models/tiny/manifest.json", "'tiny' has no pretrained network"),
    ],
)
def test_a_wrong_target_is_refused(experiments, target, message):
    result = experiments.run("--dry-run", target)
    last = result.stdout.strip().splitlines()[-1]
    assert result.returncode != 0 and last.startswith("planer: ") and message in last, result.stdout


@pytest.mark.workflow
def test_a_head_that_nothing_trains_is_refused_before_any_stage(experiments):
    """The folder is that of a BERT without a classifier."""
    result = experiments.run("results/data/tiny-bert-task/manifest.json", "--config", "finetune={steps: 0}")
    last = result.stdout.strip().splitlines()[-1]
    assert result.returncode != 0 and last.startswith("planer: tiny-bert prepare_task: pretrained.folder: "), last
    assert "lacks a head for the task's labels" in last


@pytest.mark.workflow
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("task={kind: text}", "task.train is empty; name a file or folder"),
        ("cluster_experts={expert_size: 3}", "the neurons of the MLP of a projection, which are 8 (arms.d2dmoe)"),
    ],
)
def test_a_wrong_value_is_refused(experiments, given, message):
    result = experiments.run("--dry-run", "results/tiny-bert/dense/eval.json", "--config", given)
    last = result.stdout.strip().splitlines()[-1]
    assert result.returncode != 0 and last.startswith("planer: config: ") and last.endswith(message), result.stdout
