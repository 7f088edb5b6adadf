"""Configuration in strict YAML, without ambiguous values.

Most readers, with YAML 1.1, read ``010`` as 8, ``1:30`` as 90 and ``no`` as false, keep the last of two equal keys and
expand aliases without limit.  Here numbers are decimal, and only ``true`` and ``false`` are truth values (as in YAML
1.2).  Equal keys, aliases and tags are refused.  Size and depth are bounded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import yaml
from yaml.composer import Composer
from yaml.resolver import Resolver

from planer.config.variant import FOLDER
from planer.errors import UserError
from planer.parsing import show

try:
    from yaml.cyaml import CParser as Parser
except ImportError:  # PyYAML without libyaml, many times slower

    class Parser(yaml.reader.Reader, yaml.scanner.Scanner, yaml.parser.Parser):
        """PyYAML's own splitting of a text."""

        def __init__(self, text: str):
            yaml.reader.Reader.__init__(self, text)
            yaml.scanner.Scanner.__init__(self)
            yaml.parser.Parser.__init__(self)


MAX_BYTES = 50_000
"""Largest file.  config/config.yaml has a third of it."""
MAX_DEPTH = 10
"""Deepest nesting."""

WORDS = {"": None, "~": None, "null": None, "true": True, "false": False}
INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
AMBIGUOUS = re.compile(r"[-+]?(0[0-9]+(\.[0-9]*)?|0[xob][0-9a-fA-F]+|[0-9][0-9.]*([:_][0-9.]+)+|[0-9]{19,})")
"""Octal, hexadecimal, base-60 and grouped digits of other readers, and integers beyond 64 bits."""


def read_yaml(path: str | Path) -> dict:
    """The keys and values of a file; no keys for an empty one.

    Raises UserError naming the file, the line and what is wrong.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
        text = content.decode("utf-8-sig")  # some editors begin a file with a byte order mark
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line}: byte {error.object[error.start]:#x} is not UTF-8; save it as UTF-8"
        ) from error
    if len(content) > MAX_BYTES:
        raise UserError(f"{path} has more than {MAX_BYTES:,} bytes, which no configuration needs")
    values = parse_yaml(text, str(path))
    if not isinstance(values, (dict, type(None))):
        raise UserError(f"{path} holds {show(values)}; it must hold keys and values, such as seed: 1111")
    return values or {}


def outermost_keys(path: Path) -> dict[str, str]:
    """The outermost keys of a file with their values, "" for lists and mappings, without any check.

    It takes a tenth of a millisecond.  Keys behind a mistake are left out, and all of a file that cannot be read.
    """
    depth, nodes = 0, []
    with suppress(OSError, yaml.YAMLError), open(path, "rb") as file:
        parser = Parser(file.read(MAX_BYTES).decode("utf-8-sig", errors="replace"))
        while event := parser.get_event():
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth == 1 and isinstance(event, (yaml.ScalarEvent, yaml.CollectionEndEvent)):
                nodes.append(getattr(event, "value", ""))
    return dict(zip(nodes[::2], nodes[1::2], strict=False))


def experiment_files(*folders: Path) -> dict[str, Path]:
    """Experiment files by name; those of later folders replace those of earlier ones.

    Names that no experiment may have are left out, and what is no regular file.
    """
    files = [path for folder in folders for path in sorted(folder.glob("*.yaml"))]
    return {path.stem: path for path in files if re.fullmatch(FOLDER, path.stem) and path.is_file()}


def read_experiment(name: str, files: Mapping[str, Path]) -> list[dict]:
    """The layers of an experiment: those of its ``base``, if any, then its file.

    files: of all experiments by name.  Raises UserError for an unknown name and for circular bases.
    """
    layers, seen = [], []
    while True:
        if not isinstance(name, str) or name not in files:
            raise UserError(
                f"unknown experiment {show(name)}; allowed: {', '.join(sorted(files))}; "
                "a new one is a file config/experiments/<name>.yaml"
            )
        if name in seen:
            raise UserError(f"{files[name]}: base: {show(name)} is based on itself; remove one base")
        values = read_yaml(files[name])
        seen.append(name)
        layers.insert(0, values)
        if "base" not in values:
            return layers
        name = values.pop("base")


def read_assignments(assignments: Iterable[str]) -> dict:
    """Keys and values of ``key=value`` texts, as the option --config takes them; every value is YAML.

    Raises UserError naming the key.
    """
    values = {}
    for assignment in assignments:
        key, _, text = assignment.partition("=")
        if key in values:
            raise UserError(f"--config {key} is given twice; keep one")
        values[key] = parse_yaml(text, f"--config {key}")
    return values


def parse_yaml(text: str, source: str):
    """The value that a YAML text stands for: mappings, lists, text, int, float, bool or None.

    Raises UserError naming the source, the line and what is wrong.
    """
    try:
        node = _Composer(text).get_single_node()
        return None if node is None else _value(node, "")
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = " ".join(str(part) for part in (error.context, error.problem) if part)
        line = 1 + min(mark.line, text.count("\n"))  # libyaml counts the end of the text as a line
        raise UserError(f"{source}, line {line}: {' '.join(reason.split())}") from error
    except yaml.reader.ReaderError as error:
        line = text.encode().count(b"\n", 0, error.position) + 1
        raise UserError(f"{source}, line {line}: character {error.character:#x} is not allowed in YAML") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: an argument with bytes that are not UTF-8
        raise UserError(f"{source} is no valid YAML: {' '.join(str(error).split())}") from error


class _Composer(Composer, Parser, Resolver):
    """PyYAML's graph of nodes, without aliases and tags, and never deeper than MAX_DEPTH."""

    def __init__(self, text: str):
        Parser.__init__(self, text)
        Composer.__init__(self)
        Resolver.__init__(self)
        self._depth = 0

    def compose_node(self, parent, index):
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise _refusal(event, f"alias *{_one_line(event.anchor)} is not read; write the value itself")
        if event.tag not in (None, "!"):
            raise _refusal(event, f"tag {_one_line(event.tag)} is not read; write the value without it")
        if self._depth == MAX_DEPTH:
            raise _refusal(event, f"more than {MAX_DEPTH} values inside one another")
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


def _refusal(place: yaml.Node | yaml.Event, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=place.start_mark)


def _value(node: yaml.Node, path: str):
    """The plain value of a node; path names its key in messages."""
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, f"{path}[{i}]") for i, item in enumerate(node.value)]
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node, path)
    values, lines = {}, {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise _refusal(key, "a key must be text")
        name = f"{path}.{key.value}" if path else key.value
        if key.value in values:
            raise _refusal(key, f"{_one_line(name)} is given twice, first in line {lines[key.value]}; keep one")
        values[key.value] = _value(value, name)
        lines[key.value] = key.start_mark.line + 1
    return values


def _scalar(node: yaml.ScalarNode, path: str):
    text = node.value
    if node.style:  # quoted, or a block of text
        return text
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    if AMBIGUOUS.fullmatch(text):
        where = f"{_one_line(path)} is " if path else ""
        raise _refusal(
            node, f"{where}{_one_line(text)}, no decimal number of up to 18 digits; write one, or quote text"
        )
    if INTEGER.fullmatch(text):
        return int(text)
    return float(text) if FLOAT.fullmatch(text) else text


def _one_line(text: str) -> str:
    return text if text.isprintable() and len(text) <= 80 else show(text)
