"""config/config.yaml has the keys of the dataclasses in planer/config, and explains each of them once."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator

import pytest
import yaml
from toy import ROOT

from planer.config import Experiment

TEXT = (ROOT / "config/config.yaml").read_text()


def keys(node: yaml.MappingNode, cls: type, path: str = "") -> Iterator[tuple[str, type, int]]:
    """Every key in the order of the file: its path, the class that declares it, and its line, counted from 0."""
    hints = typing.get_type_hints(cls)
    assert {key.value for key, _ in node.value} == {field.name for field in dataclasses.fields(cls)}, path
    for key, value in node.value:
        declaring = next(base for base in cls.__mro__[::-1] if key.value in vars(base).get("__annotations__", {}))
        yield f"{path}{key.value}", declaring, key.start_mark.line
        if dataclasses.is_dataclass(hints[key.value]) and not hasattr(hints[key.value], "from_values"):
            yield from keys(value, hints[key.value], f"{path}{key.value}.")


def undocumented_or_repeated(text: str) -> list[str]:
    """Keys without a comment, on their line or above, where they occur first, and keys with a comment elsewhere."""
    lines, seen, wrong = text.splitlines(), set(), []
    for path, declaring, line in keys(yaml.compose(text), Experiment):
        name = (declaring, path.rpartition(".")[2])
        commented = " #" in lines[line] or lines[line - 1].lstrip().startswith("#")
        if commented != (name not in seen):
            wrong.append(path)
        seen.add(name)
    return wrong


def test_every_key_is_explained_once():
    assert undocumented_or_repeated(TEXT) == []


@pytest.mark.parametrize(
    "old, new, path",
    [
        ("  eval_steps: 5000         # steps", "  eval_steps: 5000\n# steps", "retrain.eval_steps"),
        ("    lr: 0.002\n", "    lr: 0.002  # half of it\n", "distill.optimizer.lr"),
    ],
)
def test_a_missing_and_a_repeated_explanation_are_found(old, new, path):
    assert TEXT.count(old) == 1
    assert path in undocumented_or_repeated(TEXT.replace(old, new))
