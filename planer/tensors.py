"""Safetensors files whose bytes follow from their contents alone, with a checksum; see files.py."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from planer.errors import Damaged
from planer.files import CHECKSUM, checksum, one_line, replacing, require_checksum, sync

TENSOR_TYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
TENSOR_TYPES |= {"int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL"}
"""What safetensors calls PyTorch's types."""


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file whole; equal contents give equal bytes.

    The file is on the disk before it takes its place, so that a power cut leaves the old file or the new one.

    tensors: on any device.  (safetensors' own writer orders metadata at random.)  Raises RuntimeError for tensors that
    share memory; ``planer.training.checkpoint.storable`` takes them apart.
    """
    storages = [tensor.untyped_storage().data_ptr() for tensor in tensors.values() if tensor.numel()]
    if len(set(storages)) < len(storages):
        raise RuntimeError("some tensors share memory")
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # larger first: all are aligned
    header, data, end = {}, hashlib.sha256(), 0

    def content(name: str) -> memoryview:
        return memoryview(tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())

    for name in names:
        begin, end = end, end + tensors[name].nbytes
        dtype, shape = TENSOR_TYPES[str(tensors[name].dtype).removeprefix("torch.")], list(tensors[name].shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
        data.update(content(name))
    metadata = dict(sorted((metadata or {}).items()))
    sealed = {**metadata, CHECKSUM: _tensors_checksum(header, metadata, data.hexdigest())}
    text = json.dumps({"__metadata__": sealed, **header}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            file.write(content(name))
        file.flush()
        sync(temporary)


def read_tensors(
    path: str | Path, finite: bool = True, unsealed: bool = True
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, on the CPU, and its metadata.

    finite: refuse tensors with NaN or infinity.  unsealed: accept a file without a checksum.
    Raises UserError when the file is missing, damaged or changed.
    """
    try:
        metadata = _checked_metadata(path, unsealed)
        tensors = load_file(path)
    except FileNotFoundError:
        raise Damaged(path, "does not exist") from None
    except (OSError, SafetensorError, ValueError, TypeError, KeyError, RecursionError, MemoryError) as error:
        raise Damaged(path, f"is no readable safetensors file ({one_line(error)})") from error
    for name, tensor in tensors.items() if finite else ():
        if str(tensor.dtype).removeprefix("torch.") not in TENSOR_TYPES:
            raise Damaged(path, f"holds weights of the unknown type {tensor.dtype}, in {name[:80]}")
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise Damaged(path, f"holds weights that are not finite, in {name[:80]}")
    return tensors, metadata


def _checked_metadata(path: str | Path, unsealed: bool) -> dict[str, str]:
    """Metadata of a safetensors file whose header and data fit the checksum; UserError where they do not."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if not 0 < size <= os.path.getsize(path) - 8:
            raise ValueError(f"a header of {size:,} bytes")
        header = json.loads(file.read(size))
        if not isinstance(header, dict):
            raise ValueError("a header without tensors")
        metadata = dict(header.pop("__metadata__", {}))
        given = metadata.pop(CHECKSUM, None)
        if given is None and not unsealed:
            raise Damaged(path, f"has no {CHECKSUM}")
        require_checksum(path, given, lambda: _tensors_checksum(header, metadata, _sha256(file)), metadata.values())
    return metadata


def _sha256(file: BinaryIO) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _tensors_checksum(header: Mapping[str, dict], metadata: Mapping[str, str], data_sha256: str) -> str:
    return checksum([header, metadata, data_sha256])
