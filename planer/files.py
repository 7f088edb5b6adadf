"""Atomic writers of files, and one checked reader a format.

Writers use a temporary name, then rename, so that a file is complete or absent.  JSON, YAML, Parquet and safetensors
files (tensors.py) have a checksum of their contents under the key CHECKSUM.  A reader refuses contents that do not fit
it.  A file without the key comes from elsewhere; it is accepted if its shape is right.  An error is one line with the
command that makes the file again.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import tokenize
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from safetensors import SafetensorError

from planer.errors import Damaged, UserError
from planer.parsing import show

if TYPE_CHECKING:  # every parse of the Snakefile imports this module, and these take half a second or more
    import numpy as np
    import pandas as pd
    import pyarrow

CHECKSUM = "checksum"
"""Key of the sha256 of a file's contents, in the file itself."""
SCHEMAS = Path(__file__).with_name("schemas")


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Raise UserError when the block cannot write path: its folder cannot be written, or the disk is full."""
    try:
        yield
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk as its own error
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot write {path}: {reason}; free space or make the folder writable") from error


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside path that takes its place when the block succeeds.  Raises UserError as writing."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            os.replace(temporary, path)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(folder: str | Path) -> Iterator[None]:
    """Write a new or empty folder in the block; when it fails, none of its files stays there.

    Raises UserError where the folder is something else, before the block.
    """
    folder = Path(folder)
    existed = os.path.lexists(folder)
    if existed and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{show(str(folder))} exists and is not an empty folder; name a new one, or remove it")
    try:
        yield
    except BaseException:
        with suppress(OSError):
            for path in folder.glob("*"):
                path.unlink()
            if not existed:
                folder.rmdir()
        raise


def check_writable(folder: str | Path, free_bytes: int = 2**20) -> None:
    """Write free_bytes into the folder, which is created if necessary, and delete them.

    Raises UserError when the folder cannot be written or has less room than that.
    """
    folder = Path(folder)
    probe = folder / f".probe.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(probe, "wb") as file:
            file.write(bytes(free_bytes))
            os.fsync(file.fileno())
    except OSError as error:
        advice = "free space or make it a writable folder"
        raise UserError(f"cannot write in {folder}: {error.strerror}; {advice}") from error
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file, or a folder's names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text)


def checksum(value: object) -> str:
    """Sha256 of a JSON value, independent of its layout in a file.  Raises TypeError or ValueError for other values."""
    return hashlib.sha256(json.dumps(value, separators=(",", ":")).encode()).hexdigest()


def with_checksum(content: dict) -> dict:
    """The checksum, then the same keys."""
    content = {key: value for key, value in content.items() if key != CHECKSUM}
    return {CHECKSUM: checksum(content), **content}


def without_checksum(path: str | Path, content: dict) -> dict:
    """The same keys without the checksum.  Raises UserError when they do not fit it."""
    values = {key: value for key, value in content.items() if key != CHECKSUM}
    require_checksum(path, content.get(CHECKSUM), lambda: checksum(values), list(values.values())[:1])
    return values


def require_checksum(path: str | Path, given: object, expected: Callable[[], str], others: Iterable[object]) -> None:
    """Raise UserError unless a checksum, where there is one, is the expected one.

    others: values beside it.  A checksum among them means that its key was damaged.
    """
    if given is None and any(re.fullmatch(r"[^\s{}]{64}", str(other)) for other in others):
        raise Damaged(path, f"was changed after it was written: its {CHECKSUM} has another name")
    if given is not None and given != expected():
        raise Damaged(path, f"was changed after it was written: its {CHECKSUM} does not fit")


def one_line(error: object, length: int = 200) -> str:
    """An error's text on one line, shortened."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= length else f"{text[:length]}..."


def write_json(path: str | Path, value: object) -> None:
    """Write a JSON document whole, an object with its checksum.  NaN and infinity are refused: they are not JSON."""
    content = with_checksum(value) if isinstance(value, dict) else value
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def read_text(path: str | Path) -> str:
    """Read UTF-8.  Raises UserError when the file is missing or unreadable."""
    try:
        return Path(path).read_bytes().decode()
    except FileNotFoundError:
        raise Damaged(path, "does not exist") from None
    except OSError as error:
        raise Damaged(path, f"cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise Damaged(path, f"is not UTF-8 ({one_line(error)})") from error


def read_json(path: str | Path, schema: str | None = None) -> dict:
    """Read what write_json wrote.

    schema: name of a file in planer/schemas that says which keys and values there must be.
    Raises UserError when the file is missing, damaged, changed, or not as the schema says.
    """
    return parse_json(path, read_text(path), schema)


def parse_json(path: str | Path, text: str, schema: str | None = None) -> dict:
    """The keys and values of a JSON text that a file holds; else as read_json."""
    try:
        content = json.loads(text, parse_float=_finite, parse_int=_integer, parse_constant=_finite)
    except (ValueError, RecursionError) as error:
        raise Damaged(path, f"is no valid JSON ({one_line(error)})") from error
    if not isinstance(content, dict):
        raise Damaged(path, "holds no keys and values")
    values = without_checksum(path, content)
    if schema:
        check_shape(path, values, schema)
    return values


def write_yaml(path: str | Path, content: dict) -> None:
    """Write keys and JSON values whole, after their checksum.  NaN and infinity are refused."""
    plain = json.loads(json.dumps(content, allow_nan=False))
    write_text(path, yaml.safe_dump(with_checksum(plain), sort_keys=False, width=120))


def read_yaml(path: str | Path) -> dict:
    """Read what write_yaml wrote.  Raises UserError when the file is missing, damaged or changed."""
    text = read_text(path)
    try:
        content = yaml.load(text, Loader=_WithoutAliases)
        json.dumps(content, allow_nan=False)
    except Exception as error:  # PyYAML's constructors raise whatever a wrong value makes them raise
        raise Damaged(path, f"is no valid YAML ({one_line(error)})") from error
    if not isinstance(content, dict):
        raise Damaged(path, "holds no keys and values")
    return without_checksum(path, content)


class _WithoutAliases(yaml.SafeLoader):
    """A small file whose aliases name one another would fill the memory."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has aliases")
        return super().compose_node(parent, index)


def check_shape(path: str | Path, values: object, schema: str) -> None:
    """Raise UserError, naming the place, unless values are as a schema of planer/schemas says."""
    import jsonschema

    document = json.loads((SCHEMAS / f"{schema}.schema.json").read_text())
    error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(document).iter_errors(values))
    if error:
        problem = f"{error.json_path}: {one_line(error.message)}"
        raise Damaged(path, f"is not as {schema}.schema.json describes it: {problem}")


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text} is no finite number")
    return number


def _integer(text: str) -> int:
    if len(text) > 19:
        raise ValueError(f"an integer of {len(text)} digits")
    return int(text)


def write_parquet(path: str | Path, table: pd.DataFrame, metadata: dict[str, str] | None = None) -> None:
    """Write a table whole, with string metadata and the checksum in the file's schema."""
    import pyarrow
    import pyarrow.parquet

    content, metadata = pyarrow.Table.from_pandas(table, preserve_index=False), metadata or {}
    sealed = {**(content.schema.metadata or {}), **metadata, CHECKSUM: _table_checksum(content, metadata)}
    with replacing(path) as temporary:
        pyarrow.parquet.write_table(content.replace_schema_metadata(sealed), temporary)


def read_parquet(
    path: str | Path, columns: Mapping[str, str], others: str | None = None
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Read what write_parquet wrote: the table, and its metadata.

    columns: what each must hold: ``text``, ``integer``, ``number`` (finite), ``gaps`` (finite or missing), or ``lists``
    (nested lists of finite numbers, in every row of the same shape).  others: what further columns must hold.
    Raises UserError when the file is missing, damaged, changed, empty, or lacks a column.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        content = pyarrow.parquet.read_table(path)
        metadata = {key.decode(): value.decode() for key, value in (content.schema.metadata or {}).items()}
        metadata.pop("pandas", None)
        given = metadata.pop(CHECKSUM, None)
        require_checksum(path, given, lambda: _table_checksum(content, metadata), metadata.values())
        table = content.to_pandas(ignore_metadata=True)
    except FileNotFoundError:
        raise Damaged(path, "does not exist") from None
    except (OSError, pyarrow.ArrowException, ValueError, TypeError, KeyError, MemoryError) as error:
        raise Damaged(path, f"is no readable Parquet table ({one_line(error)})") from error
    _check_columns(path, content, table, columns, others)
    return table, metadata


def _table_checksum(content: pyarrow.Table, metadata: Mapping[str, str]) -> str:
    return checksum([content.to_pydict(), dict(sorted(metadata.items()))])


def _check_columns(
    path: str | Path, content: pyarrow.Table, table: pd.DataFrame, columns: Mapping[str, str], others: str | None
) -> None:
    """Raise UserError unless the columns hold what read_parquet says."""
    if not content.num_rows:
        raise Damaged(path, "has no rows")
    if len(set(content.column_names)) < content.num_columns:
        raise Damaged(path, "has two columns of one name")
    for name in columns:
        if name not in content.column_names:
            raise Damaged(path, f"lacks the column {name}")
    for name in content.column_names:
        kind = columns.get(name, others)
        if kind is None:
            raise Damaged(path, f"has an unknown column {name[:80]!r}")
        if not _holds(kind, content[name], table[name]):
            raise Damaged(path, f"has values in the column {name[:80]} that are no {kind}")


def _holds(kind: str, column: pyarrow.ChunkedArray, values: pd.Series) -> bool:
    import numpy as np
    import pyarrow

    types = pyarrow.types
    integer, number = types.is_integer(column.type), types.is_integer(column.type) or types.is_floating(column.type)
    if kind == "text":
        return (types.is_string(column.type) or types.is_large_string(column.type)) and not column.null_count
    if kind == "integer":
        return integer and not column.null_count
    if kind == "number":
        return number and bool(np.isfinite(values).all())
    if kind == "gaps":
        return (number or types.is_null(column.type)) and not np.isinf(values.astype(float)).any()
    try:
        nested = np.array(column.to_pylist(), dtype=float)
    except (ValueError, TypeError):  # ragged, or no numbers
        return False
    return bool(np.isfinite(nested).all())


def file_sha256(path: str | Path) -> str:
    """Sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_tokens(path: str | Path) -> np.ndarray:
    """A split of a prepared corpus, memory-mapped: 1-D unsigned ids of the vocabulary that the manifest counts.

    Raises UserError when the array, or the manifest beside it, is missing or damaged, or they do not fit each other.
    """
    import numpy as np

    path = Path(path)
    manifest = read_json(path.with_name("manifest.json"), "manifest")
    try:
        if file_sha256(path) != manifest["files_sha256"].get(path.name):
            raise Damaged(path, "is not the file that manifest.json beside it describes: its sha256 differs")
        tokens = np.lib.format.open_memmap(path, mode="r")  # np.load would open archives too
    except FileNotFoundError:
        raise Damaged(path, "does not exist") from None
    except (OSError, ValueError, EOFError, SyntaxError, tokenize.TokenError) as error:
        raise Damaged(path, f"is no readable array ({one_line(error)})") from error
    if tokens.ndim != 1 or tokens.dtype.kind != "u" or not tokens.size:
        raise Damaged(path, f"holds {tokens.dtype} of shape {tokens.shape}, not token ids")
    if (largest := int(tokens.max())) >= manifest["vocab_size"]:
        place = f"the id {largest:,} at offset {int(tokens.argmax()):,}"
        raise Damaged(path, f"holds {place}, but the vocabulary has {manifest['vocab_size']:,} symbols")
    return tokens
