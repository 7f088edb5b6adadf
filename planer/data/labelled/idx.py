"""Images and labels in IDX files, as MNIST has them, gzipped or not."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from planer.data.labelled.examples import Columns, Rows
from planer.data.user_files import labels_beside
from planer.errors import UserError
from planer.files import one_line


def read(path: Path, columns: Columns) -> Rows:
    """Images [N, H, W, 1] of a file named ``...images-idx3-ubyte``, and the labels in the file of the same beginning.

    Raises UserError when one is damaged, or they have different lengths.
    """
    labels_path = labels_beside(path)
    if not labels_path.is_file():
        raise UserError(f"{path}: there is no {labels_path.name} beside it; put the labels there")
    images, labels = _array(path, 3), _array(labels_path, 1)
    if len(images) != len(labels):
        raise UserError(f"{path} holds {len(images):,} images, {labels_path.name} {len(labels):,} labels")
    return Rows(images[..., None], labels.tolist(), [f"image {number}" for number in range(1, len(labels) + 1)])


def _array(path: Path, axes: int) -> np.ndarray:
    """Unsigned bytes: a zero, a zero, 8 for bytes, the number of axes, their sizes in 4 bytes each, the values."""
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({one_line(error)}); copy it again") from error
    if content[:4] != bytes((0, 0, 8, axes)):
        raise UserError(f"{path} is no IDX file of bytes with {axes} axes: it begins with 0x{content[:4].hex()}")
    start = 4 + 4 * axes
    shape = [int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4)]
    if len(content) != start + math.prod(shape):
        found = f"{len(content):,} bytes, its sizes {' x '.join(map(str, shape))} ask for {start + math.prod(shape):,}"
        raise UserError(f"{path} holds {found}; copy it again")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
