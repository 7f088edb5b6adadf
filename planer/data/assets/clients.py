"""Packages by name, from the package clients of this machine, and what is in them."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from planer.errors import UserError
from planer.files import one_line

SECONDS = 1800
"""A client that takes longer is given up."""


@dataclass(frozen=True)
class Package:
    """A package: client is ``pip``, ``pip-source``, ``npm`` or ``apt``."""

    client: str
    name: str
    version: str

    def command(self, folder: Path) -> list[str]:
        """What is run, inside folder, to put the package's file there."""
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
        return {
            "pip": [*pip, f"{self.name}=={self.version}"],
            "pip-source": [*pip, "--no-binary", ":all:", f"{self.name}=={self.version}"],
            "npm": ["npm", "pack", "--silent", f"{self.name}@{self.version}"],
            "apt": ["apt-get", "download", "--quiet", f"{self.name}={self.version}"],
        }[self.client]


def download(package: Package, folder: Path) -> Path:
    """Fetch a package's file into an empty folder.  Raises UserError when the client is missing or fails."""
    command = package.command(folder)
    problem = f"{package.name} {package.version} cannot be fetched with {package.client}"
    try:
        run = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS)
    except FileNotFoundError:
        raise UserError(f"{problem}: there is no {command[0]}; install it, or name other assets") from None
    except subprocess.TimeoutExpired:
        raise UserError(f"{problem}: no answer for {SECONDS} s; try again") from None
    files = [path for path in folder.iterdir() if path.is_file()]
    if run.returncode or len(files) != 1:
        lines = [line for line in run.stderr.splitlines() if line.strip()]
        raise UserError(
            f"{problem} ({one_line(lines[-1] if lines else 'no message')}); try again, or name other assets"
        )
    return files[0]


def members(archive: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Names of the files in an archive, and what reads each; a function is called before the next name is taken.

    Nothing is unpacked.  Raises UserError for a file that is no readable .whl, .zip, .deb, .tar.gz or .tgz.
    """
    try:
        if archive.suffix in (".whl", ".zip"):
            yield from _zip_members(archive)
        elif archive.suffix == ".deb":
            with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(archive)], stdout=subprocess.PIPE) as unpacking:
                yield from _tar_members(fileobj=unpacking.stdout, mode="r|")
        else:
            yield from _tar_members(name=archive, mode="r|gz")
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise UserError(f"{archive.name} is no readable archive ({one_line(error)}); fetch it again") from error


def _zip_members(archive: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    with zipfile.ZipFile(archive) as content:
        for name in content.namelist():
            yield name, partial(content.read, name)


def _tar_members(**options) -> Iterator[tuple[str, Callable[[], bytes]]]:
    with tarfile.open(**options) as content:
        for member in content:
            if member.isfile():
                yield member.name.removeprefix("./"), content.extractfile(member).read
