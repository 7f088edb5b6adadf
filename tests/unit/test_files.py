"""Files are written whole or not at all; a full or read-only disk is one line."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
import pyarrow.parquet
import pytest
import torch
from safetensors import safe_open
from small_disk import small_disk
from toy import ROOT

from planer.errors import UserError, remake
from planer.files import check_writable, read_json, replacing, write_json, write_parquet, write_text
from planer.tensors import read_tensors, write_tensors


def test_a_file_appears_when_the_block_succeeds(tmp_path):
    path = tmp_path / "new" / "folder" / "file.txt"
    with replacing(path) as temporary:
        temporary.write_text("half")
        assert not path.exists() and temporary.parent == path.parent
    assert path.read_text() == "half"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("exception", [KeyboardInterrupt, ValueError, SystemExit])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, exception):
    path = tmp_path / "file.txt"
    write_text(path, "old")
    with pytest.raises(exception), replacing(path) as temporary:
        temporary.write_text("new, but only h")
        assert path.read_text() == "old"
        raise exception
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_an_open_reader_keeps_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    write_text(path, "old")
    with open(path) as reader:
        write_text(path, "newer")
        assert reader.read() == "old"
    assert path.read_text() == "newer"


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    path = tmp_path / "file.txt"
    write_text(path, "old")

    def full(self, text):
        with open(self, "w") as file:
            file.write(text[:3])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError, match="No space left on device; free space or make the folder writable") as error:
        write_text(path, "new")
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_text(path, "x" * 100_000),
        lambda path: write_parquet(path, pd.DataFrame({"a": range(100_000)})),
        lambda path: write_tensors(path, {"weight": torch.zeros(10_000)}),
        lambda path: check_writable(path.parent),
    ],
    ids=["text", "parquet", "safetensors", "probe"],
)
def test_a_write_that_fails_half_way_is_one_line(tmp_path, write):
    with pytest.raises(UserError, match="cannot write .*; free space") as error, small_disk(2**14):
        write(tmp_path / "file")
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def read_only_folder():
    """A read-only folder; where tests run as root, another user in the test."""
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "read-only"
        path.mkdir()
        path.joinpath("file.txt").write_text("old")
        path.chmod(0o555)
        Path(folder).chmod(0o755)
        if user == 0:
            os.seteuid(65534)
        yield path
        if user == 0:
            os.seteuid(0)
        path.chmod(0o755)


def test_a_folder_that_cannot_be_written_is_one_line(read_only_folder):
    for path in (read_only_folder / "file.txt", read_only_folder / "sub" / "file.txt"):
        with pytest.raises(UserError, match="Permission denied; free space or make the folder writable") as error:
            write_text(path, "new")
        assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert [path.name for path in read_only_folder.iterdir()] == ["file.txt"]
    assert (read_only_folder / "file.txt").read_text() == "old"


def test_check_writable_leaves_no_file(tmp_path):
    check_writable(tmp_path / "new" / "folder")
    assert list((tmp_path / "new" / "folder").iterdir()) == []


def test_check_writable_in_a_read_only_folder_is_one_line(read_only_folder):
    with pytest.raises(UserError, match=f"cannot write in {read_only_folder}: Permission denied") as error:
        check_writable(read_only_folder)
    assert "\n" not in str(error.value)


def test_a_file_in_place_of_the_folder_is_one_line(tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(UserError, match="cannot write"):
        write_text(tmp_path / "file" / "inner.txt", "new")
    assert (tmp_path / "file").read_text() == "old"


def test_json_round_trip(tmp_path):
    value = {"b": [1, 2.5, None, "x"], "a": {"nested": True}}
    write_json(tmp_path / "v.json", value)
    assert read_json(tmp_path / "v.json") == value
    assert list(read_json(tmp_path / "v.json")) == ["b", "a"]
    assert (tmp_path / "v.json").read_text().endswith("}\n")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_refuses_nan_and_infinity(tmp_path, value):
    with pytest.raises(ValueError):
        write_json(tmp_path / "v.json", {"loss": value})
    assert not (tmp_path / "v.json").exists()


def test_parquet_round_trip_with_metadata(tmp_path):
    table = pd.DataFrame({"epoch": [0, 1], "alpha": [[[0.1, 0.2]], [[0.3, 0.4]]], "ce": [float("nan"), 1.5]})
    write_parquet(tmp_path / "t.parquet", table, {"identity": json.dumps({"device": "x"})})
    back = pd.read_parquet(tmp_path / "t.parquet")
    assert back["epoch"].tolist() == [0, 1] and back["alpha"][1][0].tolist() == [0.3, 0.4]
    assert back["ce"].isna().tolist() == [True, False]
    metadata = pyarrow.parquet.read_schema(tmp_path / "t.parquet").metadata
    assert json.loads(metadata[b"identity"]) == {"device": "x"} and b"pandas" in metadata


def test_equal_tensors_are_equal_bytes(tmp_path):
    """In every process, with any hash seed."""
    code = (
        "import sys, torch; from planer.tensors import write_tensors;"
        "tensors = {f'blocks.{i}.weight': torch.full((i, 2), i, dtype=torch.float16) for i in range(9)};"
        "tensors |= {'bias': torch.arange(3), 'scalar': torch.tensor(0.1), 'transposed': torch.ones(2, 3).t()};"
        "write_tensors(sys.argv[1], tensors, {f'Schlüssel \\x01 {i}': 'x' * i for i in range(9)})"
    )
    paths = [tmp_path / str(i) for i in range(4)]
    for path in paths:
        environment = os.environ | {"PYTHONHASHSEED": path.name}
        subprocess.run([sys.executable, "-c", code, path], check=True, cwd=ROOT, env=environment)
    assert len({path.read_bytes() for path in paths}) == 1
    tensors, metadata = read_tensors(paths[0])
    assert metadata == {f"Schlüssel \x01 {i}": "x" * i for i in range(9)}
    assert tensors["blocks.8.weight"].equal(torch.full((8, 2), 8, dtype=torch.float16))
    assert tensors["transposed"].equal(torch.ones(3, 2))
    assert tensors["scalar"].equal(torch.tensor(0.1))
    with safe_open(paths[0], framework="pt") as file:
        assert metadata.items() <= file.metadata().items()
        assert all(file.get_tensor(name).equal(tensor) for name, tensor in tensors.items())


def test_tensors_that_share_memory_are_refused(tmp_path):
    weight = torch.zeros(4)
    with pytest.raises(RuntimeError, match="share memory"):
        write_tensors(tmp_path / "file", {"a": weight, "b": weight})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/home/me/results/demo/target_0.5/hf/model.safetensors", "demo/target_0.5/hf"),
        ("results/demo/target_0.5/routers/model.safetensors", "demo/target_0.5/routers/model.safetensors"),
    ],
)
def test_the_command_that_makes_a_file_anew(path, target):
    assert remake(path) == f"make it anew: snakemake --cores all --force results/{target}"
