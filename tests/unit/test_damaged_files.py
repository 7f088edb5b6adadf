"""Randomly damaged files of every format: the reader refuses them in one line, or returns the undamaged values.

PLANER_MUTATIONS sets the number of mutations of each format.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from made_up import evaluation
from safetensors.torch import save_file
from test_latency_table import table

from planer import models
from planer.data.prepare import prepare
from planer.errors import UserError
from planer.files import file_sha256, read_json, read_tokens, read_yaml, write_json, write_parquet, write_yaml
from planer.latency.table import LatencyTable
from planer.models import LanguageModel, initialise
from planer.report.training_figures import load_history
from planer.specs import Architecture, DynamicMoE, FeedForward, MoE, load_selection
from planer.tensors import read_tensors, write_tensors
from tests.mutations import mutate

COUNT = int(os.environ.get("PLANER_MUTATIONS", "200"))
NETWORK = Architecture(13, 16, (FeedForward(24), MoE(24, 3, 1), DynamicMoE(24, 4, 8)))
SELECTION = {"variant": "baseline", "chosen_by": "pattern", "target": None, "estimated": 1.0}


def _report(folder: Path) -> Path:
    write_json(folder / "eval.json", evaluation("target_0.5", "(s8f)x2", 1.0, 0.5, 0.5))
    return folder / "eval.json"


def _cost(folder: Path) -> Path:
    stages = ("search", "retrain", "distill", "sparsify", "train_routers")
    hours = dict.fromkeys((*stages, "total"), 0.5)
    report = {"device": "here", "settings": 64 * "0", "hours": hours, "tokens": dict.fromkeys(stages, 9)}
    write_json(folder / "cost.json", report)
    return folder / "cost.json"


def _architecture(folder: Path) -> Path:
    NETWORK.save(folder / "architecture.yaml", selection=SELECTION)
    return folder / "architecture.yaml"


def _table(folder: Path) -> Path:
    table().save(folder / "table.parquet")
    return folder / "table.parquet"


def _history(folder: Path) -> Path:
    rows = [{"step": n, "loss": 1 / n, "valid_nll": 2.0 if n % 3 == 0 else None} for n in range(1, 10)]
    write_parquet(folder / "history.parquet", pd.DataFrame(rows))
    return folder / "history.parquet"


def _weights(folder: Path) -> Path:
    network = LanguageModel(NETWORK)
    initialise(network, torch.Generator().manual_seed(0))
    models.save(network, folder)
    return folder / "model.safetensors"


def _corpus(folder: Path) -> Path:
    prepare("pysource", folder)
    return folder / "valid.npy"


READERS: dict[str, tuple[Callable[[Path], Path], Callable[[Path], object]]] = {
    "report": (_report, lambda path: read_json(path, "eval")),
    "cost": (_cost, lambda path: read_json(path, "cost")),
    "architecture": (_architecture, lambda path: (Architecture.load(path), load_selection(path))),
    "table": (_table, lambda path: LatencyTable.load(path).rows.to_dict("records")),
    "history": (_history, lambda path: load_history(path).fillna(-1.0).to_dict("records")),
    "weights": (_weights, lambda path: {n: t.tolist() for n, t in models.load(path.parent).state_dict().items()}),
    "corpus": (_corpus, lambda path: read_tokens(path).tobytes()),
    "manifest": (lambda folder: _corpus(folder).with_name("manifest.json"), lambda path: read_json(path, "manifest")),
}
"""The writer and the reader of every kind of file."""


@pytest.mark.parametrize("kind", READERS)
def test_a_damaged_file_is_refused_in_one_line_or_read_as_it_was(tmp_path, kind):
    write, read = READERS[kind]
    path = write(tmp_path)
    content, expected, outcomes = path.read_bytes(), read(path), []
    for number in range(COUNT):
        mutation, damaged = mutate(path, content, (kind, number))
        path.write_bytes(damaged)
        try:
            found = read(path)
        except UserError as error:
            assert str(error).startswith(f"{path} ") and "\n" not in str(error), mutation
            assert "; put a whole copy there" in str(error), mutation
            outcomes.append("refused")
        else:
            assert mutation.startswith("bare") or found == expected, f"{mutation}, {number}: another value"
            outcomes.append("accepted")
    assert outcomes.count("refused") > 0.7 * COUNT


def _rows(**columns: object) -> pd.DataFrame:
    return table().rows.assign(**columns)


def _without(rows: pd.DataFrame, **values: str) -> pd.DataFrame:
    return rows[~np.logical_and.reduce([rows[name] == value for name, value in values.items()])]


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (_rows(median_ms=-1.0, p10_ms=-1.0, p90_ms=-1.0), "costs -1 ms; it must be"),
        (_rows(median_ms=0.0, p10_ms=0.0, p90_ms=0.0), "costs 0 ms; it must be above 0"),
        (_rows(median_ms=float("nan")), "column median_ms that are no number"),
        (_rows(median_ms=float("inf")), "column median_ms that are no number"),
        (_rows(median_ms="fast"), "column median_ms that are no number"),
        (_rows(median_ms=1.0, p90_ms=0.5), "skip costs 1 ms; it must be 0|out of order"),
        (_rows(p10_ms=9.0), "out of order"),
        (_rows(n=0), "out of order, or none"),
        (_rows(batch=4.0), "column batch that are no integer"),
        (_rows(device="Toy 3000"), "another device than its identity"),
        (_rows(mem_len=7), "another mem_len than its identity"),
        (_rows(attention="sparse"), "the attention 'sparse'; allowed: cached, recompute"),
        (pd.concat([_rows(), _rows().tail(1)]), "two rows of moe_top2"),
        (_rows().head(0), "has no rows"),
        (_without(_rows(), option="embedding_and_head"), "lacks rows for batch 4, .*, such as embedding_and_head"),
        (_without(_rows(), option="skip", attention="recompute"), "such as skip, recompute"),
        (_without(_rows(), option="moe_top1", routing="one"), "such as moe_top1, .*one"),
        (_without(_rows(), option="attention_1", execution="compiled"), "batch 4, compiled, such as attention_1"),
        (_without(_rows(), batch=4), "lacks rows for batch 4, eager"),
    ],
)
def test_a_table_of_impossible_latencies_is_refused(tmp_path, rows, problem):
    """The table has no checksum, as if another program wrote it."""
    metadata = {"identity": json.dumps(table().identity), "notes": json.dumps(table().notes)}
    write_parquet(tmp_path / "table.parquet", rows.reset_index(drop=True), metadata)
    with pytest.raises(UserError, match=problem) as error:
        LatencyTable.load(tmp_path / "table.parquet")
    assert "\n" not in str(error.value) and "table.parquet" in str(error.value)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"vocab_size": "13"}, "vocab_size is '13'; it must be a whole number"),
        ({"vocab_size": True}, "vocab_size is True"),
        ({"d_model": 10**11}, "d_model is 100000000000; it must be from 1 to"),
        ({"d_model": 15}, "must be even"),
        ({"norm": "middle"}, "norm is 'middle'; allowed: post, pre"),
        ({"dropout": 1.5}, "dropout is 1.5"),
        ({"blocks": []}, "must list 1 to 1,000 blocks"),
        ({"blocks": "sf"}, "must list 1 to 1,000 blocks"),
        ({"blocks": [{"kind": "conv"}]}, "unknown block kind 'conv'; allowed: skip"),
        ({"blocks": ["skip"]}, "unknown block kind 'skip'"),
        ({"blocks": [{"kind": "moe", "d_inner": 24}]}, "moe.num_experts is missing"),
        ({"blocks": [{"kind": "skip", "d_inner": 24}]}, "unknown key skip.d_inner"),
        ({"blocks": [{"kind": "moe", "d_inner": 24, "num_experts": 2, "top_k": 3}]}, "top_k is 3, more than its 2"),
        (
            {"blocks": [{"kind": "dynamic_moe", "d_inner": 24, "expert_size": 5, "router_width": 8}]},
            "5 does not divide",
        ),
        ({"blocks": [{"kind": "feed_forward", "d_inner": 2**24}] * 999, "d_model": 2**24}, "parameters are more than"),
        ({"pattern": "ss"}, "contradicts itself"),
        ({"patern": "ss"}, "unknown key 'patern'"),
    ],
)
def test_an_invalid_architecture_is_refused(tmp_path, change, problem):
    content = {"pattern": NETWORK.pattern, **NETWORK.to_dict(), "selection": SELECTION} | change
    if "blocks" in change:
        del content["pattern"]
    write_yaml(tmp_path / "architecture.yaml", content)
    with pytest.raises(UserError, match=problem) as error:
        Architecture.load(tmp_path / "architecture.yaml")
    assert "\n" not in str(error.value) and "architecture.yaml" in str(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    path = _weights(tmp_path)
    tensors, _ = read_tensors(path)
    tensors["blocks.0.sublayer.w1.weight"][3, 4] = value
    write_tensors(path, tensors)
    with pytest.raises(UserError, match="not finite, in blocks.0.sublayer.w1.weight"):
        models.load(tmp_path)
    assert read_tensors(path, finite=False)[0].keys() == tensors.keys()


def test_a_file_without_a_checksum_is_read(tmp_path):
    path = _architecture(tmp_path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line for line in lines if not line.startswith("checksum")))
    assert Architecture.load(path) == NETWORK
    path.write_text("\n".join(lines).replace("d_model: 16", "d_model: 18"))
    with pytest.raises(UserError, match="was changed after it was written: its checksum does not fit"):
        Architecture.load(path)


def test_yaml_with_aliases_or_other_types_is_refused(tmp_path):
    path = tmp_path / "architecture.yaml"
    values = ("2026-01-01", ".nan", "!!binary aGVsbG8=", "]", "!!bool x", "!!timestamp x", '"\\UFFFFFFFF"')
    for text in ("a: &a [1, 2]\nb: *a\n", "- 1\n", *(f"a: {value}\n" for value in values)):
        path.write_text(text)
        with pytest.raises(UserError, match="is no valid YAML|holds no keys and values"):
            read_yaml(path)


@pytest.mark.parametrize("header", [b'"a"', b"1", b"null", b"true", b"[]"])
def test_a_safetensors_header_that_is_no_table_of_tensors_is_refused(tmp_path, header):
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(UserError, match="is no readable safetensors file"):
        read_tensors(path)


def test_weights_of_another_dtype_are_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(4, dtype=torch.float8_e4m3fn)}, path)
    with pytest.raises(UserError, match="unknown type torch.float8_e4m3fn, in weight"):
        read_tensors(path)


@pytest.mark.parametrize(
    "content",
    [
        b"PK\x03\x04" + bytes(100),
        b"\x93NUMPY\x01\x00\x10\x00{'shape': (-3,   " + bytes(10),
        b"\x93NUMPY\x01\x00\x10\x00{'descr': '|u1'[ " + bytes(10),
    ],
)
def test_a_file_that_fits_its_checksum_but_holds_no_array_is_refused(tmp_path, content):
    path = _corpus(tmp_path)
    path.write_bytes(content)
    _register(path)
    with pytest.raises(UserError, match="is no readable array"):
        read_tokens(path)


def _register(path: Path, **changes) -> None:
    """Write the checksum of a split, and other changes, to its manifest."""
    manifest = read_json(path.with_name("manifest.json"))
    sums = manifest["files_sha256"] | {path.name: file_sha256(path)}
    write_json(path.with_name("manifest.json"), manifest | {"files_sha256": sums} | changes)


def test_an_id_outside_the_vocabulary_is_named_with_its_place(tmp_path):
    path = _corpus(tmp_path)
    np.save(path, np.array([3, 1, 7, 2], np.uint8))
    _register(path, vocab_size=7)
    with pytest.raises(UserError, match="valid.npy holds the id 7 at offset 2, but the vocabulary has 7 symbols"):
        read_tokens(path)


def test_an_array_of_another_corpus_is_refused(tmp_path):
    path = _corpus(tmp_path)
    shutil.copy(tmp_path / "test.npy", path)
    with pytest.raises(UserError, match="valid.npy is not the file that manifest.json beside it describes"):
        read_tokens(path)


def test_an_architecture_far_larger_than_its_weights_takes_no_memory(tmp_path):
    _weights(tmp_path)
    dataclasses.replace(NETWORK, vocab_size=2**24, d_model=2**12).save(tmp_path / "architecture.yaml")
    with pytest.raises(UserError, match=r"holds [\d,]+ weights, architecture.yaml beside it has 68,7"):
        models.load(tmp_path)
