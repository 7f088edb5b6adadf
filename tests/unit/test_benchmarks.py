"""The CPU benchmark runs to its end and says of every bar whether it was reached."""

from __future__ import annotations

import json

import torch

from benchmarks import cpu
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
