"""What a user is told in one line."""

from __future__ import annotations

from pathlib import Path


class UserError(Exception):
    """A mistake in what the user gave (config, target, file, device): shown as one line, without a traceback."""


class Damaged(UserError):
    """A file that cannot be used: what is wrong with it, and what makes it anew."""

    def __init__(self, path: str | Path, problem: str, remedy: str = ""):
        """remedy: a sentence; the command that runs the file's rule by default."""
        self.path, self.problem = path, problem
        super().__init__(f"{path} {problem}; {remedy or remake(path)}")


def remake(path: str | Path) -> str:
    """What a user runs to get a file anew."""
    return f"make it anew: snakemake --cores all --force {path}"
