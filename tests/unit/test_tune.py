"""Tuning writes the tables that the choice of backends reads, with the fastest backend first."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import torch

from planer.errors import UserError
from planer.kernels import choice, tune

CPU = torch.device("cpu")
SMALL = [
    tune.Case("expert_ffn", "float32", "training", 8, 16, 0.25),
    tune.Case("expert_ffn", "bfloat16", "inference", 8, 16, 0.125),
    tune.Case("dynamic_ffn", "float32", "inference", 2, 128, 0.1),
    tune.Case("neuron_threshold", "float32", "inference", 2, 1, 0.5),
]


def test_the_written_table_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(tune, "cases", lambda device: SMALL)
    threads = torch.get_num_threads()
    try:
        tune.main(["--device", "cpu", "--rounds", "3", "--threads", "1", "--output", str(tmp_path)])
    finally:
        torch.set_num_threads(threads)
    for operation, own in (("expert_ffn", SMALL[:2]), ("neuron_threshold", SMALL[3:]), ("dynamic_ffn", SMALL[2:3])):
        (path,) = (tmp_path / operation).iterdir()
        assert path.name == choice.table_path(operation, choice.device_class(CPU)).name
        table = json.loads(path.read_text())
        assert table["device"] == choice.device_class(CPU) and table["measured"] and table["threads"] == 1
        assert len(table["rows"]) == len(own)
        for case, row in zip(own, table["rows"], strict=True):
            kind = case.dtype, case.mode, case.tokens, case.expert_size, case.share
            assert row.keys() >= choice.KEYS and choice.nearest(table["rows"], *kind) == row
            assert len(row["backends"]) == len(row["ms"]) >= 1 + (operation != "neuron_threshold")
    assert "rows" in table["rows"][0]["backends"], "rows is a backend for few tokens"


@pytest.mark.parametrize(
    ("loop", "grouped_mm", "cpp", "expected"),
    [
        (1.0, 2.0, 3.0, ["loop", "grouped_mm", "cpp"]),
        (1.0, 2.0, 1.02, ["cpp", "loop", "grouped_mm"]),
        (1.0, 0.5, 0.52, ["grouped_mm", "cpp", "loop"]),
    ],
)
def test_order_of_backends(monkeypatch, loop, grouped_mm, cpp, expected):
    """They are sorted by their medians.  Preference decides between close ones."""
    medians = {"loop": loop, "grouped_mm": grouped_mm, "cpp": cpp}
    rows = [(name, number, ms + number - 1) for name, ms in medians.items() for number in range(3)]
    monkeypatch.setattr(tune, "measure", lambda *_: pd.DataFrame(rows, columns=["name", "round", "ms"]))
    row = tune.tuned(SMALL[0], CPU, 3, 1.0)
    assert row["backends"] == expected and row["ms"] == [medians[name] for name in expected]


def test_a_backend_that_raises_is_left_out(monkeypatch, caplog):
    def raises():
        raise RuntimeError("out of resource: shared memory, Required: 147456, Hardware limit: 101376")

    calls = SMALL[1].calls(CPU)
    monkeypatch.setattr(tune.Case, "calls", lambda *_: {"triton": raises, "loop": calls["loop"]})
    assert tune.tuned(SMALL[1], CPU, 3, 1.0)["backends"] == ["loop"]
    assert "left out: triton of " in caplog.text and "Hardware limit: 101376" in caplog.text
    monkeypatch.setattr(tune.Case, "calls", lambda *_: {"triton": raises})
    with pytest.raises(UserError, match="no backend of .* runs on this device"):
        tune.tuned(SMALL[1], CPU, 3, 1.0)


def test_every_case_has_backends_that_run_on_a_cpu():
    for case in tune.cases(CPU):
        assert 0 < case.share <= 1
    calls = SMALL[2].calls(CPU)
    assert {"masked_dense", "loop", "rows"} <= calls.keys() and "triton" not in calls


@pytest.mark.parametrize("options", [["--rounds", "1"], ["--threads", "0"], ["--device", "tpu"]])
def test_a_wrong_option_is_refused(options):
    with pytest.raises(UserError) as error:
        tune.main(options)
    assert "\n" not in str(error.value)
