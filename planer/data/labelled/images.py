"""Images, decoded when they are asked for; and folders of image files, one folder a label.

Letters in shapes: H height, W width, C channels.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
from PIL import Image

from planer.data.labelled.examples import Columns, Rows
from planer.data.user_files import SUFFIXES
from planer.errors import UserError
from planer.files import one_line


class Images(Sequence):
    """Images from files, or from structures {bytes, path} of a table.

    Raises UserError, naming file and row, when one cannot be read: its header at once, its contents when it is asked
    for.
    """

    def __init__(self, path: Path, places: Sequence[str], sources: Sequence[Path | dict | None]):
        """path: of the table, or of the folder that the places are in."""
        self._path, self._places, self._sources = path, places, sources
        self._folder = path if path.is_dir() else path.parent
        for index in range(len(sources)):
            self._open(index).close()

    def __len__(self) -> int:
        return len(self._sources)

    def __getitem__(self, index: int | np.ndarray) -> np.ndarray | Images:
        """The image uint8 [H, W, C], C = 1 for a gray one, else 3; for an array of positions the images there."""
        if isinstance(index, np.ndarray):
            return Images(self._path, [self._places[i] for i in index], [self._sources[i] for i in index])
        with self._open(index) as image:
            try:
                pixels = np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"))
            except Exception as error:  # each format's reader has errors of its kind
                self._refuse(index, error)
        return pixels.reshape(*pixels.shape[:2], -1)

    def _open(self, index: int) -> Image.Image:
        source = self._sources[index]
        try:
            if isinstance(source, dict):
                source = io.BytesIO(source["bytes"]) if source["bytes"] else self._folder / source["path"]
            return Image.open(source)
        except Exception as error:  # as above
            self._refuse(index, error)

    def _refuse(self, index: int, error: Exception) -> NoReturn:
        reason = one_line(error)
        raise UserError(f"{self._path}, {self._places[index]}: no readable image ({reason}); replace it") from error


def read_folder(folder: Path, columns: Columns) -> Rows:
    """Image files of a folder with one folder a label, by name of label and of file.

    Raises UserError when a label has no image, or a file cannot be read.
    """
    labels = sorted(item.name for item in folder.iterdir() if item.is_dir() and not item.name.startswith("."))
    if not labels:
        raise UserError(f"{folder} holds no folders of images; make one for every label")
    files: list[Path] = []
    for label in labels:
        found = sorted(file for file in (folder / label).iterdir() if file.suffix.lower() in SUFFIXES)
        if not found:
            raise UserError(f"{folder / label} holds no image; allowed: {', '.join(SUFFIXES)}")
        files += found
    places = [file.relative_to(folder).as_posix() for file in files]
    return Rows(Images(folder, places, files), [file.parent.name for file in files], places, tuple(labels))
