"""The user's files that a task is read from, found before any job.

Needs neither torch nor NumPy.  Nothing is refused here: a job refuses what is missing or cannot be read.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from operator import attrgetter
from pathlib import Path

IMAGES, LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"
"""What names of IDX files end with, before .gz."""
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""Of files in folders of images."""


def labels_beside(path: Path) -> Path:
    """The file with the labels of IDX images; another file itself."""
    return path.with_name(path.name.replace(IMAGES, LABELS))


def is_saved_set(path: Path) -> bool:
    """Whether a folder is one that a Hugging Face Dataset.save_to_disk wrote."""
    return os.path.isfile(path / "state.json")


def data_files(path: Path) -> list[Path]:
    """The files of a split; none of a folder of images, which may hold a million."""
    if is_saved_set(path):  # the package datasets keeps results of its own in files named cache-
        return sorted(file for file in path.glob("[!.]*") if file.is_file() and not file.name.startswith("cache-"))
    return sorted({file for file in (path, labels_beside(path)) if file.is_file()}) if os.path.isfile(path) else []


def images_digest(folder: Path) -> str:
    """Sha256 of the names, sizes and dates of a folder's images, whose contents a dry run has no time to read."""
    digest, name = hashlib.sha256(), attrgetter("name")
    with suppress(OSError):
        for label in sorted(os.scandir(folder), key=name):
            if label.is_dir() and not label.name.startswith("."):
                for file in sorted(os.scandir(label), key=name):
                    if file.name.lower().endswith(SUFFIXES):
                        status = file.stat()
                        line = f"{label.name}/{file.name} {status.st_size} {status.st_mtime_ns}\n"
                        digest.update(os.fsencode(line))
    return digest.hexdigest()
