"""The benchmarks run on tiny sizes and say of every bar whether it was reached."""

from __future__ import annotations

import argparse
import json
import math
import re

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks import (
    claims,
    conversion_memory,
    cpu,
    decode,
    dry_run,
    figures,
    generate,
    gpu,
    mixture_latency,
    mixtures,
    neuron_threshold,
    ranking,
    waiting,
)
from benchmarks.experts import Sizes
from benchmarks.output import start
from planer.files import write_json
from planer.kernels.cpp import build as kernels
from planer.models import LanguageModel, save
from planer.specs import Architecture, FeedForward
from tests.unit.toy import ROOT, experiment

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def threads():
    """Restores the number of threads, which benchmarks change."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def has_kernels() -> bool:
    return kernels.available()


def test_conversion_memory(monkeypatch, tmp_path, capsys):
    pytest.importorskip("transformers", reason="the package transformers is not installed")
    keys = {"vocab_size": 96, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16}
    facts = conversion_memory.TaskFacts("text", "nll", block_size=16)
    tiny = conversion_memory.Shape("GPT2", "LMHeadModel", facts, 16, 2, 2, keys)
    for stage in conversion_memory.STAGES:
        conversion_memory.run_stage(tiny, stage, tmp_path / stage)
        params, gib = capsys.readouterr().out.split()[-2:]
        assert int(params) == sum(weight.numel() for weight in tiny.network().parameters()) and float(gib) > 0
    rows = {"sparsify": 1.5, "cluster": 16.5, "routers": None}
    params = {stage: None if gib is None else 7 for stage, gib in rows.items()}
    monkeypatch.setattr(
        conversion_memory,
        "measured",
        lambda name, stage, threads: {
            "network": name,
            "stage": stage,
            "samples": 1,
            "params": params[stage],
            "gib": rows[stage],
        },
    )
    monkeypatch.setattr("sys.argv", ["conversion_memory.py", "vit", "--results", str(tmp_path / "results")])
    conversion_memory.main()
    out = capsys.readouterr().out
    assert re.search("sparsify .* 1.5 +yes\n.*cluster .* 16.5 +NO\n.*routers .* failed\n", out)
    (path,) = (tmp_path / "results").iterdir()
    assert [row["gib"] for row in json.loads(path.read_text())["rows"]] == [1.5, 16.5, None]


def test_cpu_benchmark(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(cpu, "TOKENS", 16)
    monkeypatch.setattr(cpu, "SIZES", Sizes(16, 256, 8))
    monkeypatch.setattr(cpu, "SMALL", Sizes(8, 16, 8))
    monkeypatch.setattr(cpu, "DYNAMIC_BARS", {(16, 16, 0.05): 0.0, (1, 16, 0.05): 1000.0})
    arguments = ["cpu.py", "--threads", "1", "--rounds", "3", "--seconds", "0.01", "--results", str(tmp_path)]
    monkeypatch.setattr("sys.argv", arguments)
    cpu.main()
    (path,) = tmp_path.iterdir()
    results = json.loads(path.read_text())
    assert {row["section"] for row in results["rows"]} == {"experts", "dynamic"}
    assert all(row["ratio"] == 1 for row in results["rows"] if row["provider"] == "dense")
    assert len(results["bars"]) == 6 and results["threads"] == 1
    lines = capsys.readouterr().out.splitlines()
    judged = [line.split() for line in lines if line.endswith(("reached", "MISSED"))]
    assert len(judged) == 4 + 2
    assert all((float(words[-3]) <= float(words[-2])) == (words[-1] == "reached") for words in judged)


def test_gpu_benchmark_on_a_cpu(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gpu, "NETWORKS", {"baseline": "(sf)x2", "searched": "s2m1im2"})
    monkeypatch.setattr(gpu, "LIMITS", {(32, 1): 1000.0, (64, 2): 0.0})
    monkeypatch.setattr("sys.argv", ["gpu.py", "--device", "cpu", "--small", "--results", str(tmp_path)])
    gpu.main()
    (path,) = tmp_path.iterdir()
    results = json.loads(path.read_text())
    sections = {section: [row for row in results["rows"] if row["section"] == section] for section in gpu.SECTIONS}
    assert all(sections.values())
    assert {what.split()[1] for what in results["left_out"]} <= {"triton", "transformers"}, "the rest runs anywhere"
    assert {row["routing"] for row in sections["experts"]} == set(gpu.ROUTINGS)
    assert all(row["us"] > 0 for row in results["rows"])
    judged = [line.split() for line in capsys.readouterr().out.splitlines() if line.endswith(("reached", "MISSED"))]
    assert [(*words[:3], words[-1]) for words in judged] == [
        ("32", "top-1", "grouped_mm", "reached"),
        ("64", "top-2", "grouped_mm", "MISSED"),
    ]


@pytest.mark.parametrize(("rows", "files"), [([{"section": "blocks"}], 1), ([], 0)])
def test_a_failed_section_of_the_gpu_benchmark(monkeypatch, tmp_path, rows, files):
    def fails(session):
        raise RuntimeError("out of memory")

    monkeypatch.setitem(gpu.SECTIONS, "experts", lambda session: session.rows.extend(rows))
    monkeypatch.setitem(gpu.SECTIONS, "dynamic", fails)
    options = ["--device", "cpu", "--small", "--results", str(tmp_path), "--sections", "dynamic", "experts"]
    monkeypatch.setattr("sys.argv", ["gpu.py", *options])
    with pytest.raises(SystemExit, match="failed: dynamic"):
        gpu.main()
    assert len(list(tmp_path.glob("cpu-*-experts-dynamic-small-*.json"))) == len(list(tmp_path.iterdir())) == files


def test_neuron_threshold_benchmark(monkeypatch, tmp_path, capsys):
    pytest.importorskip("transformers")
    from tests.unit.tiny_pretrained import save

    save("llama", tmp_path / "network")
    (tmp_path / "text").write_text("the quick brown fox jumps over the lazy dog in an other text " * 4)
    monkeypatch.setattr(neuron_threshold, "BLOCK", 8)
    monkeypatch.setattr(neuron_threshold, "CONTEXT", 4)
    texts = [part for split in ("calibration", "valid", "test") for part in (f"--{split}", str(tmp_path / "text"))]
    arguments = [str(tmp_path / "network"), *texts]
    options = ["--tokens", "32", "--rounds", "3", "--results", str(tmp_path / "results")]
    monkeypatch.setattr("sys.argv", ["neuron_threshold.py", *arguments, *options])
    neuron_threshold.main()
    (path,) = (tmp_path / "results").iterdir()
    results = json.loads(path.read_text())
    assert len(results["rows"]) == 16 and all(0 < row["executed"] < 1 for row in results["rows"])
    for row in results["rows"]:
        kept = row["executed"]
        cost = (1 + 2 * kept) / 3 if row["score"] == "gate" else (2 + kept) / 3
        assert row["flops"] == pytest.approx(cost, abs=0.03), "comparisons cost little compared with the products"
    assert all(len(times) == 3 and times["dense"]["ratio"] == 1 for times in results["times"].values())
    tested = [row for row in results["rows"] if "test" in row]
    assert len(tested) == 2 and all(row["test"]["rise"] == row["rise"] for row in tested), "both splits are one text"
    assert re.search(r"of the feed-forward FLOPs, bar 16%: (reached|MISSED)", capsys.readouterr().out)


def test_agreement_of_signals_with_final_quality():
    final = [1.5, 1.2, 1.9, 1.4, 1.7, 1.3]
    rows = [
        {
            "pattern": "s",
            "same": 2 * nll,
            "reverse": -nll,
            "half": min(nll, 1.45),
            "FLOPs": -nll,
            "none": 1,
            "final": nll,
        }
        for nll in final
    ]
    same, reverse, half, size, none = ranking.agreement(rows, seed=0)
    assert size["tau"] == pytest.approx(1), "more is better"
    assert [none["tau"], *none["interval"]] == [0, 0, 0]
    assert same["signal"] == "same" and [same["tau"], *same["interval"]] == pytest.approx([1, 1, 1])
    assert [reverse["tau"], *reverse["interval"]] == pytest.approx([-1, -1, -1])
    assert half["interval"][0] < half["tau"] < 1 and half["tau"] <= half["interval"][1]


def test_a_ranking_needs_a_search(monkeypatch):
    monkeypatch.setattr("sys.argv", ["ranking.py", "--experiment", "wt103", "--target", "0.123"])
    with pytest.raises(SystemExit, match="results/wt103/target_0.123/search/supernet.safetensors does not exist; run"):
        ranking.main()


def test_wait_policies_are_compared_within_a_round(monkeypatch):
    class Fake:
        def __init__(self, factor):
            self.factor, self.asked = factor, 0

        def times(self, task, seconds):
            self.asked += 1
            return [self.factor * self.asked * ms for ms in (1.0, 2.0, 6.0)]

    monkeypatch.setattr(waiting, "LOADS", {"none": (False, False)})
    workers = {"spin": Fake(1), "brief": Fake(1), "passive": Fake(3)}
    with waiting.Progress(9, "waiting") as bar:
        rows = list(waiting.compared(workers, {}, 3, 0.1, bar))
    assert [(row["task"], row["policy"]) for row in rows] == [
        (task, policy) for task in ("train", "measure") for policy in workers
    ]
    assert [row["ratio"] for row in rows] == [1, 1, 3] * 2
    assert {row["n"] for row in rows} == {9} and rows[0]["max_ms"] == 30.0


def test_mixture_latency_benchmark(monkeypatch, tmp_path, capsys):
    arguments = ["--threads", "1", "--widths", "8", "--tokens", "16", "--rounds", "3", "--seconds", "0.01"]
    monkeypatch.setattr("sys.argv", ["mixture_latency.py", *arguments, "--results", str(tmp_path)])
    mixture_latency.main()
    (path,) = tmp_path.iterdir()
    rows = json.loads(path.read_text())["rows"]
    assert {"loop", "grouped_mm"} <= {row["kernel"] for row in rows}
    assert all(row["ratio"] > 0 and row["n"] == row["dense_n"] == 3 for row in rows)
    assert "at most 1.1 feed-forward layers: " in capsys.readouterr().out


def test_the_summary_of_mixture_latency(capsys):
    rows = [{"d_model": 8, "tokens": n, "kernel": "loop", "ratio": ratio} for n, ratio in ((64, 2.0), (256, 1.1))]
    mixture_latency.show(rows, (64, 256))
    assert "layers: d_model 8, 256 tokens, loop: 1.10\n" in capsys.readouterr().out
    mixture_latency.show(rows[:1], (64,))
    assert capsys.readouterr().out.endswith("layers: nowhere\n")


@pytest.mark.skipif("not has_kernels()", reason="needs a C++ compiler")
def test_decode_benchmark(monkeypatch, tmp_path, capsys):
    sizes = decode.Sizes(16, 32, 48, 2, 4, 0, 2, depth=1, words=20, head_modules=2, copies=2, memory=3)
    monkeypatch.setattr(decode, "SIZES", dict.fromkeys(decode.SIZES, sizes))
    arguments = ["--rounds", "3", "--seconds", "0.01", "--results", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["decode.py", *arguments])
    decode.main()
    (path,) = tmp_path.iterdir()
    found = json.loads(path.read_text())
    table = claims.read_table("decode", {"decode": ROOT / "benchmarks/claims/decode.yaml"})
    assert all(figures.measured(figure, [found]).value > 0 for figure in table.figures.values())
    assert found["threads"] == 1 and "sparse both and head" in capsys.readouterr().out
    options = argparse.Namespace(rounds=3, seconds=0.01)
    assert len(list(decode.measured_large_layers(options, sizes))) == 3


@pytest.mark.skipif("not has_kernels()", reason="needs a C++ compiler")
@pytest.mark.parametrize(
    ("options", "name"),
    [([], ""), (["--sections", "network", "floor"], "-floor-network"), (["--shape", "17B"], "-17B")],
)
def test_files_of_decoding_are_named_after_shape_and_sections(monkeypatch, tmp_path, options, name):
    monkeypatch.setattr(decode, "SECTIONS", dict.fromkeys(decode.SECTIONS, lambda *_: []))
    monkeypatch.setattr(decode, "measured_large_layers", lambda *_: [])
    monkeypatch.setattr("sys.argv", ["decode.py", *options, "--results", str(tmp_path)])
    decode.main()
    (path,) = tmp_path.iterdir()
    assert re.search(rf"-decode{name}-\d{{4}}-\d\d-\d\d\.json$", path.name)


@pytest.mark.skipif("not has_kernels()", reason="needs a C++ compiler")
def test_files_of_generation_are_named_after_the_network(monkeypatch, tmp_path):
    folder, text = tmp_path / "wt/target_0.5/retrain", tmp_path / "text"
    save(LanguageModel(Architecture(2, 4, (FeedForward(4),))), folder)
    write_json(folder / "vocab.json", [97, 98])
    text.write_text("ab" * 30)
    monkeypatch.setattr(generate, "timed", lambda *_: [])
    monkeypatch.setattr("sys.argv", ["generate.py", str(folder), str(text), "--results", str(tmp_path / "found")])
    generate.main()
    (path,) = (tmp_path / "found").iterdir()
    assert "-generate-wt-target-0-5-retrain-" in path.name
    found = json.loads(path.read_text())
    assert (found["folder"], found["text"]) == (str(folder), str(text))


@pytest.fixture
def tiny_mixtures(monkeypatch, tmp_path):
    """The tiny experiment, three networks, and the folder of a random text."""
    networks = {"dense": ("sf", 0.0), "all": ("s1m1", 0.0), "noisy": ("s1m1", 0.05)}
    monkeypatch.setattr(mixtures, "NETWORKS", networks)
    monkeypatch.setattr(mixtures, "TIMED_CALLS", 4)
    config = experiment()
    random, folder = np.random.default_rng(0), tmp_path / config.data.dataset
    folder.mkdir()
    for name in ("train", "valid", "test"):
        np.save(folder / f"{name}.npy", random.integers(0, 20, 40_000, dtype=np.uint8))
    return config, folder


def test_networks_with_and_without_mixtures_are_trained_in_slices(tiny_mixtures, tmp_path):
    config, folder = tiny_mixtures
    comparison = mixtures.Comparison(config, folder, 4, 4_000, tmp_path, [*mixtures.NETWORKS])
    assert comparison.training.batch * config.distill.tgt_len >= 250 * config.model.num_experts
    shares = comparison.latency_shares(trained=False)
    assert shares["parent"] == 1 and shares.keys() == {"parent", *mixtures.NETWORKS}
    comparison.train_parent(2)
    slices = list(comparison.slices([2, 4]))
    assert [[row["step"] for row in rows] for rows in slices] == [[2] * 3, [4] * 3]
    assert [len(row["load"]) for row in slices[1]] == [0, 1, 1]
    assert all(row["latency"] > 0 for row in slices[1])
    dense, exact, noisy = slices[1]
    assert dense["valid"]["from_dense"] == dense["test"]["from_dense"] == 0
    assert len({row[text]["bpc"] for row in (exact, noisy) for text in ("valid", "test")}) == 4


def test_results_are_written_after_each_slice_until_time_is_up(tiny_mixtures, tmp_path, capsys):
    config, folder = tiny_mixtures
    sizes = {
        "networks": ["dense", "noisy"],
        "balance": 0.2,
        "parent_steps": 2,
        "steps": 4,
        "slices": 2,
        "scored": 4_000,
        "minutes": 0.0,
    }
    options = argparse.Namespace(experiment="tiny", data=folder.parent, results=tmp_path / "found", **sizes)
    mixtures.run(options, config, tmp_path)
    (path,) = options.results.iterdir()
    found = json.loads(path.read_text())
    assert [(row["network"], row["step"]) for row in found["slices"]] == [("dense", 2), ("noisy", 2)]
    assert found["training"]["balance_weight"] == 0.2
    assert "after 2 steps" in capsys.readouterr().out


def test_paired_differences_and_busiest_experts():
    dense = np.array([1.0, 2.0, 3.0, 4.0])
    row = mixtures.compared(dense + math.log(2), dense, dense - math.log(2))
    assert [row["from_dense"], row["from_parent"], row["bpc"]] == pytest.approx([1, 2, 1 + 2.5 / math.log(2)])
    assert row["from_dense_se"] == pytest.approx(0, abs=1e-12)
    history = pd.DataFrame({"load_1_0": [0.5, 0.3], "load_1_1": [0.5, 0.7], "load_11_0": [0.9, 0.9], "loss": [1, 1]})
    assert mixtures.busiest(history) == pytest.approx([0.6, 0.9])


def test_mixtures_refuse_networks_without_dense(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["mixtures.py", "--networks", "one mixture", "dense"])
    with pytest.raises(SystemExit):
        mixtures.main()
    assert "--networks: the first one must be dense" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("benchmark", "arguments", "reason"),
    [
        (gpu, ["--sections", "nope"], "argument --sections: invalid choice: 'nope' \\(choose from"),
        (cpu, ["--threads", "0"], "argument --threads: '0' must be a whole number from 1 to 999,999,999"),
        (mixture_latency, ["--rounds", "many"], "argument --rounds: 'many' must be a whole number"),
        (mixture_latency, ["--widths", "8", "7"], "--widths: 7 is below the number of experts, 8"),
        (ranking, ["--experiment", "nope"], "planer: cannot read .*config/experiments/nope.yaml"),
    ],
)
def test_wrong_options_are_one_line(monkeypatch, capsys, benchmark, arguments, reason):
    monkeypatch.setattr("sys.argv", ["benchmark", *arguments])
    with pytest.raises(SystemExit) as ended:
        start(benchmark.main)
    assert re.search(reason, f"{ended.value.code} {capsys.readouterr().err}")


def test_mixtures_need_a_text(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["mixtures.py", "--data", str(tmp_path)])
    with pytest.raises(SystemExit, match="enwik8-mini/train.npy does not exist; run snakemake --cores 2 results/data"):
        mixtures.main()


def test_the_bare_dry_run_plans_the_given_number_of_jobs(tmp_path):
    (tmp_path / "Snakefile").write_text(dry_run.bare_snakefile(rules=5, jobs=9))
    cpu_s, wall_s, jobs = dry_run.dry_run(tmp_path, "done")
    assert cpu_s > 0 and wall_s > 0 and jobs == 9
