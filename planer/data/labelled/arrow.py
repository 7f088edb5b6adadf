"""Tables of Apache Arrow: .parquet files, and folders that a Hugging Face Dataset.save_to_disk wrote.

The package datasets is not needed.  Columns hold texts, or images as structures {bytes, path}.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pyarrow
import pyarrow.ipc
import pyarrow.parquet

from planer.data.labelled.examples import Columns, Rows, text_rows
from planer.data.labelled.images import Images
from planer.errors import UserError
from planer.files import one_line
from planer.parsing import show


def read_parquet(path: Path, columns: Columns) -> Rows:
    """The rows of a .parquet file; names of labels as Hugging Face data sets keep them in its schema."""
    try:
        file = pyarrow.parquet.ParquetFile(path)
        columns.check(path, file.schema_arrow.names)
        table = file.read(columns=columns.names)
        table.validate(full=True)  # reading a damaged table would end the process
        described = json.loads((file.schema_arrow.metadata or {}).get(b"huggingface", b"{}"))
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path} is no readable Parquet file ({one_line(error)}); write it again") from error
    return _rows(path, columns, table, _label_names(described, "info", "features", columns.label))


def read_saved(folder: Path, columns: Columns) -> Rows:
    """The rows of a folder that save_to_disk wrote; names of labels from its dataset_info.json."""
    try:
        described = json.loads((folder / "dataset_info.json").read_bytes())
        files = [entry["filename"] for entry in json.loads((folder / "state.json").read_bytes())["_data_files"]]
        tables = [
            pyarrow.ipc.open_stream(pyarrow.memory_map(str(folder / Path(file).name))).read_all() for file in files
        ]
        table = pyarrow.concat_tables(tables)
        table.validate(full=True)
    except (pyarrow.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} is no readable saved data set ({one_line(error)}); save it again") from error
    columns.check(folder, table.column_names)
    return _rows(folder, columns, table.select(columns.names), _label_names(described, "features", columns.label))


def _label_names(described: object, *keys: str) -> list[str] | None:
    """Names of labels in the description of a data set; None where it has none."""
    for key in (*keys, "names"):
        described = described.get(key) if isinstance(described, dict) else None
    return list(map(str, described)) if isinstance(described, list) and described else None


def _rows(path: Path, columns: Columns, table: pyarrow.Table, names: list[str] | None) -> Rows:
    """Texts or images of a table, with labels by name where their ids have names."""
    values = table.to_pydict()
    places = [f"row {number}" for number in range(1, table.num_rows + 1)]
    if names:
        numbered = zip(places, values[columns.label], strict=True)
        values[columns.label] = [
            _named(f"{path}, {place}: column {columns.label!r}", names, id_) for place, id_ in numbered
        ]
    if pyarrow.types.is_struct(table.schema.field(columns.input).type):
        rows = Rows(Images(path, places, values[columns.input]), values[columns.label], places)
    else:
        rows = text_rows(path, columns, zip(places, _mappings(values), strict=True))
    return dataclasses.replace(rows, label_names=tuple(names) if names else None, label_column=columns.label)


def _named(place: str, names: list[str], label: object) -> str:
    if not isinstance(label, int) or not 0 <= label < len(names):
        found = "empty" if label is None else show(label)
        raise UserError(f"{place} is {found}; the file names labels with the ids 0 to {len(names) - 1}")
    return names[label]


def _mappings(values: dict[str, list]) -> list[dict]:
    return [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
