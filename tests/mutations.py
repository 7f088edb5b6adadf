"""Seeded damage to files: to bytes, keys, columns and tensors."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import yaml
from safetensors.numpy import load, save

Mutation = Callable[[bytes, random.Random], bytes]
VALUES = (None, True, "text", "", [], {}, [1], -1, 0, 0.5, 1e308, 10**18, "NaN", "\u0661")
"""Replacements of a value."""
LITERALS = (b"NaN", b"Infinity", b"-Infinity", b"1e999", b"9" * 400, b"9" * 5000, b"[" * 5000)
"""Replacements of a number in a JSON text."""


def truncated(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def flipped(content: bytes, rng: random.Random) -> bytes:
    """One to eight bits are inverted."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 8)):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def overwritten(content: bytes, rng: random.Random) -> bytes:
    """Some bytes are zeros, as a file system may leave them after a power cut."""
    begin = rng.randrange(len(content))
    length = rng.randint(1, len(content) - begin)
    return content[:begin] + bytes(length) + content[begin + length :]


def cut_out(content: bytes, rng: random.Random) -> bytes:
    begin = rng.randrange(len(content))
    return content[:begin] + content[begin + rng.randint(1, 64) :]


def doubled(content: bytes, rng: random.Random) -> bytes:
    return content + content


def replaced(content: bytes, rng: random.Random) -> bytes:
    """An empty file, noise, or a file of another kind."""
    array = io.BytesIO()
    np.save(array, np.arange(9.0))
    others = [b"", b"\n", rng.randbytes(200), b"{}", b"[]", b"null", b"\xff\xfe{", b"PAR1" * 20, array.getvalue()]
    others += [save({"w": np.zeros(3, np.float32)}), b"a: &a [*a]\n", b"- 1\n", b"\x89PNG\r\n\x1a\n", b"[" * 100_000]
    return rng.choice(others)


BYTES: dict[str, Mutation] = {
    f.__name__: f for f in (truncated, flipped, overwritten, cut_out, doubled, replaced)
}  # any file


def _places(value: object) -> list[tuple[dict | list, str | int]]:
    """Every (container, key) inside a document."""
    pairs = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    return [place for key, child in pairs for place in [(value, key), *_places(child)]]


def _change(document: dict, rng: random.Random) -> None:
    """Drop, add, repeat or replace one value somewhere inside."""
    container, key = rng.choice([place for place in _places(document) if place[1] != "checksum"])
    change = rng.choice(["drop", "value", "value", "number", "add"])
    if change == "drop":
        del container[key]
    elif change == "add" and isinstance(container, list):
        container.append(container[key])
    elif change == "number" and isinstance(container[key], (int, float)):
        container[key] = container[key] * rng.choice([-1, 1e3, 0.999]) + 1
    else:
        container[key] = rng.choice(VALUES)


def changed_json(content: bytes, rng: random.Random) -> bytes:
    document = json.loads(content)
    _change(document, rng)
    return json.dumps(document, indent=2).encode()


def literal_json(content: bytes, rng: random.Random) -> bytes:
    """A number that JSON does not have, or that no float holds."""
    document = json.loads(content)
    numbers = [(c, k) for c, k in _places(document) if isinstance(c[k], (int, float))]
    container, key = rng.choice(numbers or _places(document))
    container[key] = "@@"
    return json.dumps(document, indent=2).encode().replace(b'"@@"', rng.choice(LITERALS), 1)


def without_checksum_json(content: bytes, rng: random.Random) -> bytes:
    document = json.loads(content)
    document.pop("checksum", None)
    return json.dumps(document).encode()


def changed_yaml(content: bytes, rng: random.Random) -> bytes:
    document = yaml.safe_load(content)
    _change(document, rng)
    return yaml.safe_dump(document, sort_keys=False).encode()


def without_checksum_yaml(content: bytes, rng: random.Random) -> bytes:
    document = yaml.safe_load(content)
    document.pop("checksum", None)
    return yaml.safe_dump(document, sort_keys=False).encode()


def changed_parquet(content: bytes, rng: random.Random) -> bytes:
    """Rows or columns are added or missing, or have impossible values."""
    table = pyarrow.parquet.read_table(pyarrow.BufferReader(content))
    metadata = table.schema.metadata
    name = rng.choice(table.column_names)
    change = rng.choice(["drop", "rename", "rows", "head", "none", "order", "constant", "constant", "one"])
    if change == "drop":
        table = table.drop_columns([name])
    elif change == "rename":
        table = table.rename_columns([column + "s" * (column == name) for column in table.column_names])
    elif change == "rows":
        table = pyarrow.concat_tables([table, table.slice(rng.randrange(table.num_rows), 1)])
    elif change in ("head", "none"):
        table = table.slice(0, 0 if change == "none" else max(1, table.num_rows // 2))
    elif change == "order":
        table = table.take(pyarrow.array(rng.sample(range(table.num_rows), table.num_rows)))
    else:
        values = table[name].to_pylist()
        wrong = rng.choice([-1.0, 0.0, float("nan"), float("inf"), 1e300, None, "text"])
        places = range(len(values)) if change == "constant" else [rng.randrange(len(values))]
        values = [wrong if i in places else value for i, value in enumerate(values)]
        if isinstance(wrong, str) or not isinstance(next(filter(None, values), 0.0), (int, float)):
            values = [None if value is None else str(value) for value in values]
        position = table.column_names.index(name)
        table = table.set_column(position, name, pyarrow.array(values))
    sink = io.BytesIO()
    pyarrow.parquet.write_table(table.replace_schema_metadata(metadata), sink)
    return sink.getvalue()


def without_checksum_parquet(content: bytes, rng: random.Random) -> bytes:
    table = pyarrow.parquet.read_table(pyarrow.BufferReader(content))
    metadata = {key: value for key, value in table.schema.metadata.items() if key != b"checksum"}
    sink = io.BytesIO()
    pyarrow.parquet.write_table(table.replace_schema_metadata(metadata), sink)
    return sink.getvalue()


def changed_tensors(content: bytes, rng: random.Random) -> bytes:
    """A tensor has NaN, another shape, type or name, or is missing; the metadata with its checksum stays."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    tensors = {name: tensor.copy() for name, tensor in load(content).items()}
    name = rng.choice([name for name, tensor in sorted(tensors.items()) if tensor.size and tensor.dtype.kind == "f"])
    tensor = tensors.pop(name)
    change = rng.choice(["nan", "nan", "inf", "shape", "type", "name", "drop", "size"])
    if change in ("nan", "inf"):
        tensor.flat[rng.randrange(tensor.size)] = float(change)
    tensor = tensor[..., None].swapaxes(0, -1) if change == "shape" else tensor
    tensor = tensor.astype(np.float16) if change == "type" else tensor
    tensor = np.concatenate([tensor.ravel(), tensor.ravel()]) if change == "size" else tensor
    if change != "drop":
        tensors[name + "x" * (change == "name")] = np.ascontiguousarray(tensor)
    return save(tensors, header.get("__metadata__"))


def without_checksum_tensors(content: bytes, rng: random.Random) -> bytes:
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    metadata = {key: value for key, value in header.get("__metadata__", {}).items() if key != "checksum"}
    return save(load(content), metadata or None)


def changed_array(content: bytes, rng: random.Random) -> bytes:
    """Ids outside the vocabulary, or of another shape or type."""
    ids = np.load(io.BytesIO(content))
    other = [ids[: len(ids) // 2], ids[:0], ids.astype(np.float32), ids.astype(np.int64) - 1, ids.reshape(-1, 2)]
    other += [ids.astype(np.uint16) + 256, np.roll(ids, 1), ids[::-1], np.array(["text"]), np.array(3, np.uint8)]
    sink = io.BytesIO()
    np.save(sink, rng.choice(other))
    return sink.getvalue()


def without_checksum_array(content: bytes, rng: random.Random) -> bytes:
    return content


FORMATS: dict[str, tuple[dict[str, Mutation], Mutation]] = {
    ".json": ({"changed": changed_json, "literal": literal_json}, without_checksum_json),
    ".yaml": ({"changed": changed_yaml}, without_checksum_yaml),
    ".parquet": ({"changed": changed_parquet}, without_checksum_parquet),
    ".safetensors": ({"changed": changed_tensors}, without_checksum_tensors),
    ".npy": ({"changed": changed_array}, without_checksum_array),
}
"""By a file's suffix: mutations of its format, and the one that removes its checksum."""


def mutate(path: Path, content: bytes, seed: object, bare: float = 1 / 3) -> tuple[str, bytes]:
    """A seeded mutation of a file's content, and its name.

    bare: the share of mutations of the file's format that first remove its checksum.  Their names begin with ``bare``.
    """
    rng = random.Random(repr(seed))
    own, strip = FORMATS[path.suffix]
    change, mutation = rng.choice([*BYTES.items(), *list(own.items()) * 3])
    if rng.random() < bare and change in own:
        return f"bare {change}", mutation(strip(content, rng), rng)
    return change, mutation(content, rng)
