"""Configuration files are read as YAML allows in one way only, or are refused in one line."""

from __future__ import annotations

import importlib.util
import os
import sys

import pytest
import yaml
from toy import ROOT

from planer.config import strict_yaml
from planer.config.strict_yaml import (
    MAX_BYTES,
    MAX_DEPTH,
    experiment_files,
    outermost_keys,
    parse_yaml,
    read_assignments,
    read_experiment,
    read_yaml,
)
from planer.errors import UserError


@pytest.mark.parametrize("file", sorted((ROOT / "config").rglob("*.yaml")), ids=lambda file: file.stem)
def test_the_configuration_is_read_as_by_pyyaml(file):
    assert read_yaml(file) == yaml.safe_load(file.read_text())


@pytest.mark.parametrize(
    "text, value",
    [
        ("1111", 1111),
        ("+7", 7),
        ("-3", -3),
        ("0", 0),
        ("0.10", 0.1),
        (".5", 0.5),
        ("1e-3", 0.001),
        ("1.0e-3", 0.001),
        ("true", True),
        ("False", False),
        ("", None),
        ("null", None),
        ("no", "no"),
        ("on", "on"),
        ("'010'", "010"),
        ("2001-01-01", "2001-01-01"),
        ("(sf)x4", "(sf)x4"),
        ("cuda:1", "cuda:1"),
        ("[baseline, target_0.5]", ["baseline", "target_0.5"]),
        ("{'steps': 5}", {"steps": 5}),
        ('{"lr": 0.5, "betas": [0.9, 0.999]}', {"lr": 0.5, "betas": [0.9, 0.999]}),
        ("7: x", {"7": "x"}),
    ],
)
def test_the_value_and_type_of_a_text(text, value):
    found = parse_yaml(text, "text")
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "text, reason",
    [
        ("seed: 010", "a.yaml, line 1: seed is 010, no decimal number"),
        ("a:\n  b: 1:30", "a.yaml, line 2: a.b is 1:30, no decimal number"),
        ("a: [1, 0x10]", "line 1: a[1] is 0x10, no decimal number"),
        ("a: 1_000", "a is 1_000, no decimal number"),
        ("a: " + "1" * 400, "(402 characters), no decimal number"),
        ("a: 1\nb: 2\na: 3", "line 3: a is given twice, first in line 1"),
        ("r: {s: 1}\nx: 0\nr: {t: 2}", "line 3: r is given twice, first in line 1"),
        ("r: {s: 1, 's': 2}", "line 1: r.s is given twice"),
        ("a: &x [1]\nb: *x", "line 2: alias *x is not read"),
        ("a: !!python/object:os.system {}", "line 1: tag tag:yaml.org,2002:python/object:os.system is not read"),
        ("a: !!int '3'", "is not read; write the value without it"),
        ("a: !" + "x" * 5000 + " 3", "... (5,003 characters) is not read"),
        ("a: &" + "x" * 5000 + " 3\nb: *" + "x" * 5000, "... (5,002 characters) is not read"),
        ("? [1, 2]\n: 3", "line 1: a key must be text"),
        ("[" * 5000, f"more than {MAX_DEPTH} values inside one another"),
        ("a: [1", "line 1: while parsing a flow sequence"),
        ("a: b: c", "line 1: mapping values are not allowed in this context"),
        ("\ta: 1", "line 1: while scanning for the next token"),
        ("a: 1\n---\nb: 2", "line 2: expected a single document"),
        ('a: "\\UFFFFFFFF"', "line 1: while parsing a quoted scalar"),
        ("a: 1\nb: \x07", "line 2: character 0x7 is not allowed in YAML"),
        ("# größer\na: 1\nb: \x07\nc: 2", "line 3: character 0x7 is not allowed in YAML"),
        ("- 1", "holds [1]; it must hold keys and values"),
        ("seed", "holds 'seed'; it must hold keys and values"),
        ("# " + "x" * MAX_BYTES, f"more than {MAX_BYTES:,} bytes"),
    ],
)
def test_ambiguous_or_broken_yaml_is_refused(tmp_path, text, reason):
    file = tmp_path / "a.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        read_yaml(file)
    message = str(error.value)
    assert str(file) in message and reason in message and "\n" not in message and len(message) < 400


def test_a_file_that_is_not_utf8_is_refused(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_bytes("seed: 1\n# größer\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"a.yaml, line 2: byte 0xf6 is not UTF-8; save it as UTF-8"):
        read_yaml(file)


def test_a_folder_or_a_missing_file_is_refused(tmp_path):
    for path, reason in ((tmp_path, "Is a directory"), (tmp_path / "none.yaml", "No such file")):
        with pytest.raises(UserError, match=f"cannot read {path}: {reason}"):
            read_yaml(path)


def test_a_file_of_comments_is_an_empty_mapping(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("# no key\n")
    assert read_yaml(file) == {}


def test_nested_aliases_are_refused():
    """Nine levels of ten aliases would expand to a billion values."""
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10))
    with pytest.raises(UserError, match="alias"):
        parse_yaml(bomb, "bomb.yaml")


def test_assignments_of_the_command_line():
    given = ["retrain={steps: 5, optimizer: {lr: 1e-3}}", "default_variants=[baseline,par]", "device=cuda:1", "seed="]
    assert read_assignments(given) == {
        "retrain": {"steps": 5, "optimizer": {"lr": 0.001}},
        "default_variants": ["baseline", "par"],
        "device": "cuda:1",
        "seed": None,
    }


@pytest.mark.parametrize(
    "given, reason",
    [
        (["seed=1", "seed=2"], "--config seed is given twice"),
        (["retrain={steps: 1, steps: 2}"], "--config retrain, line 1: steps is given twice"),
        (["default_variants=[baseline"], "--config default_variants, line 1: while parsing a flow sequence"),
        (["device=\udce4"], "--config device is no valid YAML"),
    ],
)
def test_wrong_assignments_are_refused(given, reason):
    with pytest.raises(UserError, match=reason):
        read_assignments(given)


def test_a_byte_order_mark_is_ignored(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_bytes(b"\xef\xbb\xbfseed: 1\n")
    assert read_yaml(file) == {"seed": 1} and outermost_keys(file) == {"seed": "1"}
    file.write_bytes(b"\xef\xbb\xbfseed: 1\n# \xf6\n")
    with pytest.raises(UserError, match=r"a.yaml, line 2: byte 0xf6 is not UTF-8"):
        read_yaml(file)


@pytest.mark.parametrize(
    "text, keys",
    [
        ("'a' : 1\n\"b\": x", {"a": "1", "b": "x"}),
        ("---\n  a:\n    1\n  b: >-\n    x\n", {"a": "1", "b": "x"}),
        ("? a\n: {b: 1}\nc: [1, {d: 2}]\n# e: 1\nf: |\n  g: 1\n", {"a": "", "c": "", "f": "g: 1\n"}),
        ("{a: {b: 1}, 'c' : x}", {"a": "", "c": "x"}),
        ("a: 1\nb: [1\nc: 2\n", {"a": "1"}),
        ("a", {}),
        ("", {}),
    ],
)
def test_outermost_keys(tmp_path, text, keys):
    file = tmp_path / "a.yaml"
    file.write_text(text)
    assert outermost_keys(file) == keys
    assert outermost_keys(tmp_path) == {}


def test_without_libyaml_the_results_are_equal(monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml.cyaml", None)
    spec = importlib.util.spec_from_file_location("slow_yaml", strict_yaml.__file__)
    slow = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(slow)
    assert slow.Parser is not strict_yaml.Parser and slow.Parser.__module__ == "slow_yaml"
    for file in (ROOT / "config/config.yaml", ROOT / "config/experiments/bert-r8.yaml"):
        assert slow.read_yaml(file) == read_yaml(file) and slow.outermost_keys(file) == outermost_keys(file)
    with pytest.raises(UserError, match=r"a.yaml, line 2: a is given twice"):
        slow.parse_yaml("a: 1\na: 2", "a.yaml")
    with pytest.raises(UserError, match=r"a.yaml, line 1: while parsing a flow sequence"):
        slow.parse_yaml("a: [1", "a.yaml")


def test_only_files_and_links_to_files_are_experiments(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
        (folder / "net.yaml").write_text("seed: 1\n")
    (first / "linked.yaml").symlink_to(second / "net.yaml")
    (first / "a b.yaml").write_text("seed: 1\n")
    (first / "dangling.yaml").symlink_to("nowhere")
    (first / "loop.yaml").symlink_to("loop.yaml")
    (first / "folder.yaml").mkdir()
    os.mkfifo(first / "fifo.yaml")
    assert experiment_files(second, first) == {"net": first / "net.yaml", "linked": first / "linked.yaml"}
    assert experiment_files(first, second)["net"] == second / "net.yaml"


@pytest.mark.parametrize("base", ["0", "false", "", "[]", "''"])
def test_a_base_that_is_no_experiment_is_refused(tmp_path, base):
    file = tmp_path / "net.yaml"
    file.write_text(f"base: {base}\n")
    with pytest.raises(UserError, match="unknown experiment .*; allowed: net; a new one is a file"):
        read_experiment("net", {"net": file})
