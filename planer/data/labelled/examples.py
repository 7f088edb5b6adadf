"""Labelled examples, and how rows of a file become them.

Letters in shapes: N examples, H height, W width, C channels.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from planer.errors import UserError
from planer.parsing import show

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelledSet:
    """Examples with one label each.

    inputs: texts, pairs of texts, or images uint8 [H, W, C] with C = 1 or 3.  labels: int64 [N], positions in
    label_names.
    """

    inputs: Sequence
    labels: np.ndarray
    label_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> LabelledSet:
        """The examples at these positions, in this order."""
        inputs = [self.inputs[i] for i in indices] if isinstance(self.inputs, list) else self.inputs[indices]
        return LabelledSet(inputs, self.labels[indices], self.label_names)


@dataclass(frozen=True)
class Columns:
    """Names of columns: of the texts or images, of second texts (none: empty), and of labels."""

    input: str = "text"
    pair: str = ""
    label: str = "label"

    @property
    def names(self) -> list[str]:
        return [name for name in (self.input, self.pair, self.label) if name]

    def check(self, place: str | Path, present: Iterable[str]) -> None:
        """Raise UserError unless a file, or a row, has each of them once."""
        present = list(present)
        for name in self.names:
            if (count := present.count(name)) != 1:
                problem = "there is no column" if not count else f"there are {count} columns"
                raise UserError(f"{place}: {problem} {show(name)}; columns: {show_names(present) or 'none'}")


@dataclass(frozen=True)
class Rows:
    """What a file holds.  values: inputs as in LabelledSet.  labels: text or whole numbers.  places: of each row in
    the file, such as ``line 7``.  label_names: all labels in the order of their ids, where the file says so."""

    values: Sequence
    labels: Sequence
    places: Sequence[str]
    label_names: tuple[str, ...] | None = None
    label_column: str = ""

    @property
    def label(self) -> str:
        """What messages call a label."""
        return f"column {show(self.label_column)}" if self.label_column else "the label"


def text_rows(path: Path, columns: Columns, rows: Iterable[tuple[str, Mapping]]) -> Rows:
    """Texts and labels of mappings, each with its place.  Raises UserError naming the place of a value that is none."""
    values, labels, places = [], [], []
    for place, row in rows:
        texts = [_text(path, place, name, row[name]) for name in columns.names if name != columns.label]
        values.append(tuple(texts) if columns.pair else texts[0])
        labels.append(row[columns.label])
        places.append(place)
    return Rows(values, labels, places, label_column=columns.label)


def _text(path: Path, place: str, column: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        found = "empty" if value is None or value == "" else f"{show(value)}, no text"
        raise UserError(f"{path}, {place}: column {show(column)} is {found}; fill it in, or remove the row")
    return value


def number_labels(
    path: Path, rows: Rows, label_names: Sequence[str] | None, trained: Sequence[str] | None = None
) -> LabelledSet:
    """Give every label its id.

    label_names: labels in the order of their ids, as the training examples have them; by default those of a trained
    head, else those that the file declares, else those that it holds, sorted, numbers by size.
    trained: of a trained head.  Where it has as many but knows none of the file's, the file's own are numbered; also
    where it has default names and another number: a new head takes its place.
    Raises UserError, naming the row, for a label that is empty or not among them.
    """
    if not len(rows.labels):
        raise UserError(f"{path} holds no rows; name a file with examples")
    labels = [_label(path, rows, index) for index in range(len(rows.labels))]
    own = tuple(rows.label_names or _sorted(set(labels)))
    names = tuple(label_names or _of_head(path, own, trained))
    if len(names) < 2:
        raise UserError(f"{path}: every row has the label {show(names[0])}; a classification needs two labels")
    ids = {name: i for i, name in enumerate(names)}
    for place, label in zip(rows.places, labels, strict=True):
        if label not in ids:
            raise UserError(f"{path}, {place}: {rows.label} has the unknown {show(label)}; known: {show_names(names)}")
    return LabelledSet(rows.values, np.array([ids[label] for label in labels], np.int64), names)


def _of_head(path: Path, own: Sequence[str], trained: Sequence[str] | None) -> Sequence[str]:
    """Labels in the order of their ids: a trained head's, or the file's own where it knows none and has as many, or
    default names."""
    if trained is None:
        return own
    alike, defaults = len(own) == len(trained), all(re.fullmatch(r"LABEL_\d+", name) for name in trained)
    if set(own) & set(trained) or not alike and not defaults:
        return trained
    if alike:
        shown = show_names(own, 3), show_names(trained, 3)
        log.info("%s: the labels %s are the network's %s, in this order", path, *shown)
    else:
        log.info("%s has %d labels, the network's head %d; a new head takes its place", path, len(own), len(trained))
    return own


def _label(path: Path, rows: Rows, index: int) -> str:
    value = rows.labels[index]
    whole = isinstance(value, (int, np.integer))
    if isinstance(value, str) and value.strip() or whole and value >= 0:
        return str(value)
    found = "-1, which marks a missing label" if whole else "empty" if value in (None, "") else f"{value!r:.60}"
    raise UserError(f"{path}, {rows.places[index]}: {rows.label} is {found}; write text or a whole number from 0")


def _sorted(labels: set[str]) -> list[str]:
    return sorted(labels, key=int) if all(label.isdecimal() for label in labels) else sorted(labels)


def show_names(names: Sequence[str], most: int = 20) -> str:
    """Names for a message, the first ones where there are many."""
    more = f" and {len(names) - most:,} others" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more
