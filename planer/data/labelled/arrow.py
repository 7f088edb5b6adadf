"""Tables of Apache Arrow: .parquet files, and folders that a Hugging Face Dataset.save_to_disk wrote.

The package datasets is not needed.  Columns hold texts, or images as structures {bytes, path}.
"""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pyarrow.ipc
import pyarrow.parquet

from planer.data.labelled.examples import Columns, Rows, text_rows
from planer.data.labelled.images import Images
from planer.errors import UserError
from planer.files import one_line


def read_parquet(path: Path, columns: Columns) -> Rows:
    """The rows of a .parquet file; names of labels as Hugging Face data sets keep them in its schema."""
    try:
        file = pyarrow.parquet.ParquetFile(path)
        columns.check(path, file.schema_arrow.names)
        table = file.read(columns=columns.names)
        described = json.loads((file.schema_arrow.metadata or {}).get(b"huggingface", b"{}"))
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path} is no readable Parquet file ({one_line(error)}); write it again") from error
    return _rows(path, columns, table, described.get("info", {}))


def read_saved(folder: Path, columns: Columns) -> Rows:
    """The rows of a folder that save_to_disk wrote; names of labels from its dataset_info.json."""
    try:
        described = json.loads((folder / "dataset_info.json").read_bytes())
        files = [entry["filename"] for entry in json.loads((folder / "state.json").read_bytes())["_data_files"]]
        tables = [
            pyarrow.ipc.open_stream(pyarrow.memory_map(str(folder / Path(file).name))).read_all() for file in files
        ]
        table = pyarrow.concat_tables(tables)
    except (pyarrow.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} is no readable saved data set ({one_line(error)}); save it again") from error
    columns.check(folder, table.column_names)
    return _rows(folder, columns, table.select(columns.names), described)


def _rows(path: Path, columns: Columns, table: pyarrow.Table, described: dict) -> Rows:
    """Texts or images of a table, with labels by name where their ids have names."""
    feature = (described.get("features") or {}).get(columns.label)
    names = feature.get("names") if isinstance(feature, dict) else None
    values = table.to_pydict()
    places = [f"row {number}" for number in range(1, table.num_rows + 1)]
    if names:
        values[columns.label] = [
            _named(path, place, names, label) for place, label in zip(places, values[columns.label], strict=True)
        ]
    if pyarrow.types.is_struct(table.schema.field(columns.input).type):
        rows = Rows(Images(path, places, values[columns.input]), values[columns.label], places)
    else:
        rows = text_rows(path, columns, zip(places, _mappings(values), strict=True))
    return Rows(rows.values, rows.labels, rows.places, tuple(names) if names else None)


def _named(path: Path, place: str, names: list[str], label: object) -> str:
    if not isinstance(label, int) or not 0 <= label < len(names):
        found = "empty" if label is None else label
        raise UserError(f"{path}, {place}: the label is {found}; the file's label names have ids 0 to {len(names) - 1}")
    return names[label]


def _mappings(values: dict[str, list]) -> list[dict]:
    return [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
