"""Corpora: finding, verifying and downloading their text.

``planer/config/corpora.yaml`` lists them.  Files are looked for in ``$PLANER_DATA``, then in ``./data``.  Missing files
are downloaded into ``./data``.  A file with the right name and the wrong content is an error.
"""

from __future__ import annotations

import http.client
import os
import sys
import sysconfig
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path

from planer.config.corpora import PUBLISHED, Corpus, Published, lookup
from planer.errors import UserError
from planer.files import file_sha256, replacing

SPLITS = ("train", "valid", "test")
_WIKITEXT_NAMES = tuple(f"wiki.{split}.tokens" for split in SPLITS)


@dataclass(frozen=True)
class Found:
    """A corpus on this machine."""

    source: str
    """Name of the file, archive or folder, without its path."""
    texts: tuple[Traversable, ...]
    """Files, or members of an archive: one for a byte corpus (many for pysource), one per split for words."""


def find(name: str) -> Found:
    """Locate a corpus or download it, and verify size and sha256 of every file with a published checksum.

    Raises UserError, naming file, expected and found, for an unknown corpus, a wrong file or a failed download.
    """
    return find_local(name) or _open(_download(lookup(name), _folders()))


def find_local(name: str) -> Found | None:
    """A corpus that is on this machine already, verified as find does it; None where it would have to be downloaded.

    Raises UserError, naming file, expected and found, for an unknown corpus and a wrong file.
    """
    corpus = lookup(name)
    if name == "pysource":
        root = Path(sysconfig.get_path("stdlib"))
        return Found(root.name, standard_library(root))
    for folder in _folders():
        for file in corpus.files:
            if (folder / file).is_file():
                if wrong := difference(folder / file, file):
                    raise UserError(f"{name}: {folder / file}: {wrong}; replace it by the published file, or remove it")
                return _open(folder / file)
        if name == "wikitext-103":
            for home in (folder / "wikitext-103", folder):
                if texts := _loose_wikitext(home):
                    return Found("wiki.{train,valid,test}.tokens", texts)
    return None


def standard_library(root: Path) -> tuple[Path, ...]:
    """The .py files of the standard library that every CPython distribution installs, sorted by relative path.

    Left out: installed packages, test suites, files added by a distribution or a build, and modules that distributions
    often split off or drop.
    """
    optional = {"distutils", "ensurepip", "idlelib", "lib2to3", "tkinter", "turtle", "turtledemo"}
    modules = sys.stdlib_module_names - optional
    # Folders are chosen before they are entered: site-packages can hold a hundred thousand files.
    tops = [top for top in root.iterdir() if top.name.removesuffix(".py") in modules]
    files = [file for top in tops for file in ([top] if top.is_file() else top.rglob("*.py"))]
    relative = (file.relative_to(root) for file in files)
    chosen = (path for path in relative if not {"test", "tests"}.intersection(path.parts))
    return tuple(root / path for path in sorted(chosen, key=Path.as_posix))


def read(corpus: Corpus, found: Found) -> bytes:
    """The text of a byte corpus: its files joined by newlines, cut to the corpus's size.

    Raises UserError when there is less text than that.
    """
    text = b"\n".join(path.read_bytes() for path in found.texts)
    if len(text) < corpus.size:
        raise UserError(
            f"{corpus.name}: {found.source} holds {len(text):,} bytes of text, needed {corpus.size:,}; "
            "use another dataset, or a complete Python installation for pysource"
        )
    return text[: corpus.size]


def difference(path: Path, name: str) -> str:
    """Difference between the file at path and the published file called name, for messages; empty when they agree."""
    expected = PUBLISHED[name]
    try:
        size = path.stat().st_size
        if size != expected.size:
            return f"found {size:,} bytes, expected {expected.size:,}"
        sha256 = file_sha256(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; make it readable") from error
    return "" if sha256 == expected.sha256 else f"found sha256 {sha256}, expected {expected.sha256}"


def _folders() -> list[Path]:
    given = os.environ.get("PLANER_DATA")
    if given and not Path(given).is_dir():
        raise UserError(f"PLANER_DATA: {given} is not a folder; name the folder that holds the corpora, or unset it")
    return [*([Path(given)] if given else []), Path("data")]


def _open(path: Path) -> Found:
    """The texts of a verified file.  Members are read by name and never extracted."""
    members = PUBLISHED[path.name].members
    return Found(path.name, tuple(zipfile.Path(path, member) for member in members) or (path,))


def _loose_wikitext(folder: Path) -> tuple[Path, ...]:
    """The three unpacked files of WikiText-103 in folder; empty when there is none."""
    texts = tuple(folder / name for name in _WIKITEXT_NAMES)
    missing = [text.name for text in texts if not text.is_file()]
    if len(missing) == len(texts):
        return ()
    if missing:
        raise UserError(f"wikitext-103: {folder} lacks {', '.join(missing)}; put all three wiki.*.tokens files there")
    return texts


def _download(corpus: Corpus, folders: list[Path]) -> Path:
    """Download the corpus's file into the last folder, and verify it before it gets its name."""
    name = corpus.files[-1]
    path, published = folders[-1] / name, PUBLISHED[name]
    advice = "set PLANER_DATA to a folder that holds the file"
    print(f"{corpus.name}: downloading {published.url} to {path}", flush=True)
    with replacing(path) as temporary:
        try:
            with temporary.open("wb") as file:
                for chunk in _fetch(published):
                    file.write(chunk)
        except _DownloadError as error:
            raise UserError(
                f"{corpus.name}: no {' or '.join(corpus.files)} in {' or '.join(map(str, folders))}, and downloading "
                f"{published.url} failed ({error}); {advice}"
            ) from error
        if wrong := difference(temporary, name):
            raise UserError(f"{corpus.name}: download of {published.url}: {wrong}; try again, or {advice}")
    return path


class _DownloadError(Exception):
    """An error of the network, as opposed to one of the disk."""


def _fetch(published: Published) -> Iterator[bytes]:
    """Chunks of the file at published.url, with a line about progress every ten seconds."""
    # The WikiText host answers 403 to urllib's own User-Agent.
    request = urllib.request.Request(published.url, headers={"User-Agent": "planer"})
    started = reported = time.monotonic()
    received = 0
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            while chunk := response.read(1 << 20):
                yield chunk
                received += len(chunk)
                now = time.monotonic()
                if now - reported > 10:
                    reported, rate = now, received / (now - started)
                    left = max(published.size - received, 0) / rate
                    print(
                        f"{received:,} of {published.size:,} bytes, {rate / 1e6:.1f} MB/s, {left:.0f} s left",
                        flush=True,
                    )
    except (OSError, http.client.HTTPException) as error:
        raise _DownloadError(error) from error
