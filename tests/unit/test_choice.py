"""The choice of a backend: the nearest row of the device's table, or defaults."""

from __future__ import annotations

import json
import logging

import pytest
import torch

from planer.kernels import choice, dynamic_ffn, expert_ffn, neuron_threshold

CPU = torch.device("cpu")


def row(tokens, expert_size, share, backend, dtype="float32", mode="inference"):
    sizes = {"tokens": tokens, "expert_size": expert_size, "share": share}
    return {"dtype": dtype, "mode": mode, **sizes, "backends": [backend]}


ROWS = [
    row(1, 16, 0.05, "rows"),
    row(1024, 16, 0.05, "cpp"),
    row(1024, 16, 0.5, "masked_dense"),
    row(1024, 128, 0.05, "loop"),
    row(1024, 128, 0.05, "other", dtype="bfloat16"),
    row(1024, 128, 0.05, "other", mode="training"),
]


@pytest.mark.parametrize(
    ("tokens", "size", "share", "expected"),
    [
        (1, 16, 0.05, "rows"),
        (20, 16, 0.05, "rows"),
        (40, 16, 0.05, "cpp"),
        (10**6, 16, 0.05, "cpp"),
        (1024, 16, 0.15, "cpp"),
        (1024, 16, 0.17, "masked_dense"),
        (1024, 40, 0.05, "cpp"),
        (1024, 50, 0.05, "loop"),
        (0, 16, 0.05, "rows"),
        (1024, 16, 0.0, "cpp"),
    ],
)
def test_the_nearest_row_in_powers_of_two(tokens, size, share, expected):
    assert choice.nearest(ROWS, "float32", "inference", tokens, size, share)["backends"] == [expected]


def test_without_a_share_the_other_sizes_decide():
    assert choice.nearest(ROWS, "float32", "inference", 900, 100, None)["backends"] == ["loop"]


def test_no_row_of_the_dtype():
    assert choice.nearest(ROWS, "float64", "inference", 1, 1, 0.1) is None


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder of tables, with empty caches."""
    monkeypatch.setattr(choice, "FOLDER", tmp_path)
    choice.order.cache_clear()
    choice._rows.cache_clear()
    yield tmp_path
    choice.order.cache_clear()
    choice._rows.cache_clear()


def order(share=0.05):
    return choice.order("dynamic_ffn", CPU, torch.float32, "inference", 1024, 128, share)


def test_the_table_of_the_device_is_read(folder, monkeypatch):
    (folder / "dynamic_ffn").mkdir()
    (folder / "dynamic_ffn/my-new-cpu-2.json").write_text(json.dumps({"rows": ROWS}))
    monkeypatch.setattr(choice, "device_class", lambda device: "My (new) CPU-2")
    assert order() == ("loop",)


def test_unknown_devices_get_defaults(folder):
    assert order() == choice.DEFAULTS["dynamic_ffn", "cpu"]


def test_the_choice_is_logged_once_for_each_kind_of_call(folder, caplog):
    with caplog.at_level(logging.INFO, logger="planer.kernels.choice"):
        for share in (0.05, 0.05, 0.1):
            order(share)
    assert len(caplog.messages) == 2
    assert "dynamic_ffn, inference, 1024 tokens, experts of 128, 0.05 of the experts" in caplog.messages[0]
    assert caplog.messages[0].endswith("cpp then masked_dense (no table)")


def test_buckets_of_shares_are_few_and_near():
    shares = torch.linspace(0.001, 1, 1000).tolist()
    assert len({choice.bucket(share) for share in shares}) < 25
    assert all(abs(choice.bucket(share) / share - 1) < 0.2 for share in shares)
    assert choice.bucket(1.0) == 1.0 and choice.bucket(0.0) == choice.MIN_SHARE


@pytest.mark.parametrize(
    "path", sorted(choice.FOLDER.glob("*/*.json")), ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_shipped_tables_are_valid(path):
    table, operation = json.loads(path.read_text()), path.parent.name
    assert choice.table_path(operation, table["device"]) == path
    sizes = () if operation == "neuron_threshold" else (512, 2048)
    modules = {"expert_ffn": expert_ffn, "dynamic_ffn": dynamic_ffn, "neuron_threshold": neuron_threshold}
    module = modules[operation]
    device = torch.device("cuda" if path.stem.startswith("nvidia") else "cpu")
    missing = {None, "needs a C++ compiler; the log says what failed", "needs Triton"}
    assert isinstance(table["measured"], bool)
    for entry in table["rows"]:
        assert entry["backends"] and set(entry["backends"]) <= set(module.BACKENDS)
        for backend in entry["backends"]:
            reason = module.unsupported(backend, device, getattr(torch, entry["dtype"]), *sizes)
            assert reason in missing, f"{backend} {reason}"
        assert entry["tokens"] > 0 and entry["expert_size"] > 0 and (entry["share"] is None or 0 < entry["share"] <= 1)
        assert hasattr(torch, entry["dtype"]) and entry["mode"] in ("inference", "training")


def test_tables_are_shipped_for_a_cpu_and_a_gpu():
    for operation in ("expert_ffn", "dynamic_ffn"):
        assert {"cpu-avx512", "nvidia-h200"} <= {path.stem for path in (choice.FOLDER / operation).glob("*.json")}
