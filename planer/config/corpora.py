"""Corpora by name, as ``corpora.yaml`` beside this module lists them.

A stage depends on the entry of its corpus alone: the rules keep the entry among its params.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from planer.errors import UserError


@dataclass(frozen=True)
class Corpus:
    """A text and how it becomes token ids."""

    name: str
    vocab_size: int
    """Checked when the data is prepared."""
    unit: Literal["byte", "word", "subword"]
    files: tuple[str, ...] = ()
    """Names of the PUBLISHED files that hold it.  The first one found is used; else the last one is downloaded."""
    size: int = 0
    """Bytes of text (a named byte corpus is the head of its file)."""
    drop_newlines: bool = False
    strip_splits: bool = False
    """Whether every split loses the white space at its ends."""
    tokens: tuple[int, int, int] | None = None
    """Train, valid and test tokens, where they are known."""
    sha256: str = ""
    """Of a user's own text and tokenizer."""

    @property
    def most_tokens(self) -> tuple[int, int, int]:
        """Upper bounds of the tokens of train, valid and test: exact numbers, or one token a byte."""
        return self.tokens or (self.size - 2 * (self.size // 20), self.size // 20, self.size // 20)


@dataclass(frozen=True)
class Published:
    """A file as its author publishes it."""

    size: int
    sha256: str
    members: tuple[str, ...] = ()
    """Texts inside an archive."""
    url: str = ""


def _built(cls: type, values: dict, **constants: str):
    """A dataclass from a mapping of YAML, whose lists become tuples."""
    return cls(
        **constants, **{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    )


_TABLE = yaml.load(Path(__file__).with_suffix(".yaml").read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
CORPORA = {name: _built(Corpus, values, name=name) for name, values in _TABLE["corpora"].items()}
PUBLISHED = {name: _built(Published, values) for name, values in _TABLE["files"].items()}


def lookup(name: str) -> Corpus:
    """The corpus of this name.

    Raises UserError naming the value and what is allowed.
    """
    if name not in CORPORA:
        raise UserError(f"dataset: unknown corpus {name!r}; allowed: {', '.join(CORPORA)}")
    return CORPORA[name]


def entry(name: str) -> dict:
    """The table's entries of a corpus and its files, as plain values."""
    corpus = lookup(name)
    return dataclasses.asdict(corpus) | {"files": {file: dataclasses.asdict(PUBLISHED[file]) for file in corpus.files}}
