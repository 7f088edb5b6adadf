"""Folders of a user's own blocks.

The environment variable PLANER_BLOCKS names them, with absolute paths, separated like those of PATH.  Each has the
subfolders ``specs`` and ``blocks``, which extend the packages of the same names.
"""

from __future__ import annotations

import os
from pathlib import Path

from planer.errors import UserError

VARIABLE = "PLANER_BLOCKS"


def plugin_folders(package: str) -> list[str]:
    """The subfolders for ``specs`` or ``blocks``."""
    return [str(Path(folder) / package) for folder in os.environ.get(VARIABLE, "").split(os.pathsep) if folder]


def check_plugin_folders() -> None:
    """Raise UserError when a folder does not exist, is named by a relative path, or lacks a subfolder."""
    for path in map(Path, (*plugin_folders("specs"), *plugin_folders("blocks"))):
        if not path.is_absolute() or not path.is_dir():
            raise UserError(
                f"{VARIABLE}: there is no folder {path}; name absolute paths of folders with specs/ and blocks/"
            )
