"""Files that appear whole or not at all: write under a temporary name, then rename."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

if TYPE_CHECKING:  # every parse of the Snakefile comes here, and pandas takes half a second
    import pandas as pd
    from torch import Tensor


class UserError(Exception):
    """A mistake in what the user gave (config, target, file, device): shown as one line, without a traceback."""


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside path that takes its place when the block succeeds.

    Raises UserError when the folder cannot be written or the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk in its own way
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot write {path}: {reason}; free space or make the folder writable") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def check_writable(folder: str | Path, free_bytes: int = 2**20) -> None:
    """Write free_bytes into the folder, making it if need be, and take them away again.

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


def write_text(path: str | Path, text: str) -> None:
    """Write text whole."""
    with replacing(path) as temporary:
        temporary.write_text(text)


def write_json(path: str | Path, value: object) -> None:
    """Write a JSON document whole.  NaN and infinity are refused: they are not JSON."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_parquet(path: str | Path, table: pd.DataFrame, metadata: dict[str, str] | None = None) -> None:
    """Write a table whole, with string metadata in the file's schema."""
    import pyarrow
    import pyarrow.parquet

    content = pyarrow.Table.from_pandas(table, preserve_index=False)
    content = content.replace_schema_metadata({**(content.schema.metadata or {}), **(metadata or {})})
    with replacing(path) as temporary:
        pyarrow.parquet.write_table(content, temporary)


def write_tensors(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors and string metadata whole, in the safetensors format; equal contents give equal bytes.

    The file is on the disk before it takes its place, so that a power cut leaves the old file or the new one.
    Raises RuntimeError (safetensors) for tensors that share memory; ``planer.training.checkpoint.storable`` takes them
    apart.
    """
    from safetensors.torch import save_file

    with replacing(path) as temporary:
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, temporary, metadata)
        if metadata:
            _sort_metadata(temporary)
        sync(temporary)


def _sort_metadata(path: Path) -> None:
    """Put the metadata of a safetensors file in the order of its keys: safetensors itself takes another one each time.

    The header is a JSON document after eight bytes that hold its length, which stays as it is.
    """
    with open(path, "r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        assert len(text) <= length
        file.seek(8)
        file.write(text.ljust(length))


def sync(path: Path) -> None:
    """Have the operating system bring a file, or a folder's names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_json(path: str | Path) -> dict:
    """Read a JSON document."""
    return json.loads(Path(path).read_text())
