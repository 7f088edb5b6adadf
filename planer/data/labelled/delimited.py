"""Tables of text: .csv with quotes, .tsv without, the first line with the names of columns, UTF-8."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from planer.data.labelled.examples import Columns, Rows, text_rows
from planer.errors import UserError
from planer.files import one_line

LONGEST = 2**31 - 1
"""Characters of a value; Python's own limit is 131,072."""


def read(path: Path, columns: Columns) -> Rows:
    """The rows of a table.  Raises UserError naming the line of a mistake."""
    csv.field_size_limit(LONGEST)
    # In GLUE's .tsv files quotes are part of the text.
    options = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if path.suffix == ".tsv" else {"strict": True}
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, **options)
        try:
            names = next(reader, [])
            columns.check(path, names)
            return text_rows(path, columns, _mappings(path, reader, names))
        except csv.Error as error:
            raise UserError(f"{path}, line {reader.line_num}: {one_line(error)}; correct the quotes") from error


def _mappings(path: Path, reader: Iterator[list[str]], names: list[str]) -> Iterator[tuple[str, dict]]:
    for values in reader:
        place = f"line {reader.line_num}"
        if len(values) != len(names) and values:
            found = f"has {len(values)} values, the first line names {len(names)} columns"
            raise UserError(f"{path}, {place}: {found}; correct the line")
        if values:
            yield place, dict(zip(names, values, strict=True))
