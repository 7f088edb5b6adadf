"""Tables as JSON objects, one a line (.jsonl)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from planer.data.labelled.examples import Columns, Rows, text_rows
from planer.errors import UserError
from planer.files import one_line


def read(path: Path, columns: Columns) -> Rows:
    """The rows of a table.  Raises UserError naming the line of a mistake."""
    with open(path, encoding="utf-8") as file:
        return text_rows(path, columns, _mappings(path, columns, file))


def _mappings(path: Path, columns: Columns, lines: Iterator[str]) -> Iterator[tuple[str, dict]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number}: no valid JSON ({one_line(error)}); correct the line") from error
        if not isinstance(row, dict):
            raise UserError(f'{path}, line {number}: no object; write {{"{columns.input}": ..., ...}} on every line')
        columns.check(f"{path}, line {number}", row)
        yield f"line {number}", row
