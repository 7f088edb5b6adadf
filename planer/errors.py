"""Errors that end a command in one line."""

from __future__ import annotations

import re
from pathlib import Path


class UserError(Exception):
    """A mistake in what the user gave (config, target, file, device): shown as one line, without a traceback."""


class Damaged(UserError):
    """A file that cannot be used: what is wrong with it, and what makes it anew."""

    def __init__(self, path: str | Path, problem: str, remedy: str = ""):
        """remedy: a sentence; what remake says by default."""
        self.path, self.problem = path, problem
        super().__init__(f"{path} {problem}; {remedy or remake(path)}")


def remake(path: str | Path) -> str:
    """What a user does to get a file anew: the command for a file of the workflow, which lies in results.

    A Hugging Face folder is made as a whole.
    """
    _, found, rest = f"/{path}".rpartition("/results/")
    target = re.sub("/hf/.*", "/hf", rest)
    return f"make it anew: snakemake --cores all --force results/{target}" if found else "put a whole copy there"
