"""Targets of the command line: the names in their paths, and one line for those that no rule makes."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Protocol

from planer.config.variant import check_name, parse_variant
from planer.errors import UserError

TASK_SUFFIX = "-task"
"""End of the folder's name of the prepared task of an experiment on a pretrained network."""


class IOFile(Protocol):
    """What is used of Snakemake's files in outputs of rules."""

    def match(self, path: str) -> object:
        """Whether a path is such a file, with what its wildcards allow."""


def names_in(path: str, datasets: Iterable[str], pretrained: Iterable[str] = ()) -> dict[str, str]:
    """The wildcards that a path below results/ names: experiment and variant, or dataset; none for other paths.

    pretrained: experiments on pretrained networks, whose variants are not checked.
    Raises UserError for a name that nothing may have, and for a variant or dataset that does not exist.
    """
    match = re.fullmatch(r"results/([^/]+)/(?:([^/]+)/.+|[^/]+)", path, re.DOTALL)
    folder, inner = match.groups() if match else (None, None)
    if folder is None or (folder in ("data", "models") and inner is None):
        return {}
    if folder == "models":
        if inner not in pretrained:
            raise UserError(f"{inner!r} has no pretrained network; allowed: {', '.join(pretrained) or 'none'}")
        return {"experiment": inner}
    if folder == "data" and inner.endswith(TASK_SUFFIX) and inner.removesuffix(TASK_SUFFIX) in pretrained:
        return {"experiment": inner.removesuffix(TASK_SUFFIX)}
    if folder == "data":
        check_name("dataset", inner)
        if inner not in datasets:
            raise UserError(f"unknown dataset {inner!r}; allowed: {', '.join(datasets)}")
        return {"dataset": inner}
    check_name("experiment", folder)
    if inner is None:
        return {"experiment": folder}
    if folder not in pretrained:
        parse_variant(inner)
    return {"experiment": folder, "variant": inner}


def check_folders(*names: str) -> None:
    """Raise UserError where a folder that jobs write in is something else."""
    for name in names:
        if os.path.lexists(name) and not os.path.isdir(name):
            raise UserError(f"{name} is no folder; move it away: jobs write in a folder of this name")


def check_made(target: str, rules: Mapping[str, Iterable[IOFile]], names: dict[str, str]) -> None:
    """Raise UserError unless the target is a rule that can be asked for by name, or a file that a rule makes.

    rules: the files of every rule.  names: those of ``names_in`` for the target.
    """
    files = {name: [(_filled(str(file), names), file) for file in made] for name, made in rules.items()}
    if target in files:
        if many := [text for text, _ in files[target] if "{" in text]:
            raise UserError(f"rule {target} makes many files; name one, such as {many[0]}")
        return
    path = os.path.relpath(target or ".")
    if os.path.isabs(target):
        raise UserError(f"target {target!r} must be relative to the working directory: {path!r}")
    pairs = list(itertools.chain.from_iterable(files.values()))
    # A match compiles the file's pattern, so it is asked for only where the text fits.
    if not any(text == path and file.match(path) for text, file in pairs):
        possible = [text for text, file in pairs if "{" in text or file.match(text)]
        close = get_close_matches(path, possible, n=1, cutoff=0.8)
        raise UserError(f"no rule makes {path!r}" + (f"; did you mean {close[0]}?" if close else ""))


def _filled(file: str, names: dict[str, str]) -> str:
    """A file of a rule with the names of a target instead of wildcards, others in braces without their constraints."""
    text = re.sub(r"\{(\w+),[^}]*\}", r"{\1}", file)
    for wildcard, name in names.items():
        text = text.replace(f"{{{wildcard}}}", name)
    return text
