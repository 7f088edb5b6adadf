"""Users' labelled examples: texts, pairs of texts and images, from the formats that people have them in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from planer.data.labelled import arrow, delimited, idx, images, json_lines
from planer.data.labelled.examples import Columns, LabelledSet, Rows, number_labels
from planer.data.user_files import IMAGES, is_saved_set
from planer.errors import UserError
from planer.files import one_line
from planer.parsing import show

READERS: dict[str, Callable[[Path, Columns], Rows]] = {
    ".csv": delimited.read,
    ".tsv": delimited.read,
    ".jsonl": json_lines.read,
    ".parquet": arrow.read_parquet,
}


def read_labelled(
    path: str | Path,
    columns: Columns | None = None,
    label_names: Sequence[str] | None = None,
    trained: Sequence[str] | None = None,
) -> LabelledSet:
    """Read one split.

    path: a .csv, .tsv, .jsonl or .parquet file; IDX images with their labels beside them; a folder that a Hugging Face
    data set was saved to; or a folder of images with one folder a label.
    columns: names of columns, where there are any.
    label_names: labels in the order of their ids, as the training examples have them; by default those of a trained
    head, else the file's own.
    trained: labels of a trained head.  Where it has as many but knows none of the file's, the file's own are numbered.
    Raises UserError naming file, column and row when something cannot be read.
    """
    path = Path(path)
    reader = _reader(path)
    try:
        rows = reader(path, columns or Columns())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} cannot be read ({one_line(error)}); it must be a readable file, text in UTF-8"
        ) from error
    return number_labels(path, rows, label_names, trained)


def _reader(path: Path) -> Callable[[Path, Columns], Rows]:
    if (path / "dataset_dict.json").is_file():
        raise UserError(f"{path} holds several splits; name one of them, such as {path / 'train'}")
    if path.is_dir():
        return arrow.read_saved if is_saved_set(path) else images.read_folder
    if not path.is_file():
        raise UserError(f"{path} does not exist; name a file or folder of labelled examples")
    if path.name.removesuffix(".gz").endswith(IMAGES):
        return idx.read
    if path.suffix not in READERS:
        allowed = f"{', '.join(READERS)}, {IMAGES}, a folder"
        raise UserError(f"{path}: unknown kind of file {show(path.suffix)}; allowed: {allowed}")
    return READERS[path.suffix]


def random_splits(examples: LabelledSet, shares: Mapping[str, float], seed: int) -> dict[str, LabelledSet]:
    """Examples at random into ``train`` and the given splits, each with its share, in the order of the file.

    Raises UserError when a split would be empty.
    """
    order = np.random.default_rng(seed).permutation(len(examples))
    parts, start = {}, 0
    for split, share in shares.items():
        end = start + round(share * len(examples))
        parts[split], start = order[start:end], end
    for split, part in (parts := {"train": order[start:], **parts}).items():
        if not len(part):
            raise UserError(f"{len(examples):,} examples are too few for a split {split}; give more, or other shares")
    return {split: examples.take(np.sort(part)) for split, part in parts.items()}
