"""The benchmarks run to their ends and say of every bar whether it was reached."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import cpu, gpu, ranking, waiting
from benchmarks.experts import Sizes


def test_cpu_benchmark(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(cpu, "TOKENS", 16)
    monkeypatch.setattr(cpu, "SIZES", Sizes(16, 256, 8))
    monkeypatch.setattr(cpu, "SMALL", Sizes(8, 16, 8))
    monkeypatch.setattr(cpu, "DYNAMIC_BARS", {(16, 16, 0.05): 0.0, (1, 16, 0.05): 1000.0})
    arguments = ["cpu.py", "--threads", "1", "--rounds", "3", "--seconds", "0.01", "--results", str(tmp_path)]
    monkeypatch.setattr("sys.argv", arguments)
    threads = torch.get_num_threads()
    try:
        cpu.main()
    finally:
        torch.set_num_threads(threads)
    (path,) = tmp_path.iterdir()
    results = json.loads(path.read_text())
    assert {row["section"] for row in results["rows"]} == {"experts", "dynamic"}
    assert all(row["ratio"] == 1 for row in results["rows"] if row["provider"] == "dense")
    assert len(results["bars"]) == 6 and results["threads"] == 1
    lines = capsys.readouterr().out.splitlines()
    judged = [line.split() for line in lines if line.endswith(("reached", "MISSED"))]
    assert len(judged) == 4 + 2
    assert all((float(words[-3]) <= float(words[-2])) == (words[-1] == "reached") for words in judged)


def test_gpu_benchmark_rehearsed_on_a_cpu(monkeypatch, tmp_path, capsys):
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


def test_agreement_of_signals_with_what_training_led_to():
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


def test_ways_of_waiting_are_compared_within_a_round(monkeypatch):
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
