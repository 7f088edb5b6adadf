"""Corpora: where their text lies, how it is recognised, and how it is fetched.

============  ==========  ====================================================================================
corpus        vocabulary  text
============  ==========  ====================================================================================
pysource             256  source files of the running interpreter's standard library; never downloaded
enwik8               204  first 10^8 bytes of a Wikipedia dump, newline bytes dropped (as NVIDIA's loader does)
enwik8-mini          200  its first 4,000,000 bytes, every byte kept
text8                 27  10^8 letters and spaces
wikitext-103     267,735  words of Wikipedia articles, one ``<eos>`` per line
============  ==========  ====================================================================================

Files are looked for in ``$PLANER_DATA``, then in ``./data``, else downloaded into ``./data``.  A file with the right
name and the wrong content is an error, never passed over.  Checksums are of the files as published at
http://mattmahoney.net/dc/textdata.html and of WikiText's ``wikitext-103-v1.zip``.
"""

from __future__ import annotations

import hashlib
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
from typing import Literal

from planer.files import UserError, replacing

SPLITS = ("train", "valid", "test")
_WIKITEXT_NAMES = tuple(f"wiki.{split}.tokens" for split in SPLITS)


@dataclass(frozen=True)
class Corpus:
    """A text and how it becomes token ids."""

    name: str
    vocab_size: int
    """Checked against the data on preparation."""
    unit: Literal["byte", "word"]
    files: tuple[str, ...]
    """Names of PUBLISHED files that hold it, best first; the last one is downloaded when none is found."""
    size: int = 0
    """Bytes of text (a byte corpus is the head of its file)."""
    drop_newlines: bool = False
    tokens: tuple[int, int, int] | None = None
    """Train, valid and test tokens, for a corpus that may lie in files without a published checksum."""


CORPORA = {
    corpus.name: corpus
    for corpus in (
        Corpus("pysource", 256, "byte", (), 1_000_000),
        Corpus("enwik8", 204, "byte", ("enwik8", "enwik8.zip"), 100_000_000, drop_newlines=True),
        Corpus("enwik8-mini", 200, "byte", ("enwik8-4MB", "enwik8-mini", "enwik8", "enwik8.zip"), 4_000_000),
        Corpus("text8", 27, "byte", ("text8", "text8.zip"), 100_000_000),
        Corpus("wikitext-103", 267_735, "word", ("wikitext-103-v1.zip",), tokens=(103_227_021, 217_646, 245_569)),
    )
}


@dataclass(frozen=True)
class Published:
    """A file as its author publishes it."""

    size: int
    sha256: str
    members: tuple[str, ...] = ()
    """Texts inside an archive."""
    url: str = ""


_ENWIK8_HEAD = Published(4_000_000, "9f9ca3a41e2b87a0268d00380577e2c308e07959b22a94c8d7b1e8901bdefc37")
PUBLISHED = {
    "enwik8": Published(100_000_000, "2b49720ec4d78c3c9fabaee6e4179a5e997302b3a70029f30f2d582218c024a8"),
    "enwik8.zip": Published(
        36_445_475,
        "547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc",
        members=("enwik8",),
        url="http://mattmahoney.net/dc/enwik8.zip",
    ),
    "enwik8-4MB": _ENWIK8_HEAD,
    "enwik8-mini": _ENWIK8_HEAD,
    "text8": Published(100_000_000, "6e890197040d37d85beb962ae1f041ff1d9a9ca8d20c7d99c85027eebf51dca7"),
    "text8.zip": Published(
        31_344_016,
        "a6640522afe85d1963ad56c05b0ede0a0c000dddc9671758a6cc09b7a38e5232",
        members=("text8",),
        url="http://mattmahoney.net/dc/text8.zip",
    ),
    "wikitext-103-v1.zip": Published(
        190_229_076,
        "242ba0f20b329cfdf1ccc61e9e9e5b59becf189db7f7a81cd2a0e2fc31539590",
        members=tuple(f"wikitext-103/{name}" for name in _WIKITEXT_NAMES),
        # Its first home, s3.amazonaws.com/research.metamind.io, has refused access since 2024; this is the author's.
        url="https://wikitext.smerity.com/wikitext-103-v1.zip",
    ),
}


@dataclass(frozen=True)
class Found:
    """A corpus on this machine."""

    source: str
    """Name of the file, archive or folder, without its path."""
    texts: tuple[Traversable, ...]
    """Files, or members of an archive: one for a byte corpus (many for pysource), one per split for words."""


def find(name: str) -> Found:
    """Locate a corpus, downloading it if need be, and verify size and sha256 of every file that has them published.

    Raises UserError, naming file, expected and found, for an unknown corpus, a wrong file or a failed download.
    """
    if name not in CORPORA:
        raise UserError(f"dataset: unknown corpus {name!r}; allowed: {', '.join(CORPORA)}")
    if name == "pysource":
        root = Path(sysconfig.get_path("stdlib"))
        return Found(root.name, standard_library(root))
    corpus, folders = CORPORA[name], _folders()
    for folder in folders:
        for file in corpus.files:
            if (folder / file).is_file():
                if wrong := difference(folder / file, file):
                    raise UserError(f"{name}: {folder / file}: {wrong}; replace it by the published file, or remove it")
                return _open(folder / file)
        if name == "wikitext-103":
            for home in (folder / "wikitext-103", folder):
                if texts := _loose_wikitext(home):
                    return Found("wiki.{train,valid,test}.tokens", texts)
    return _open(_download(corpus, folders))


def standard_library(root: Path) -> tuple[Path, ...]:
    """The .py files of the standard library that every CPython distribution installs, sorted by relative path.

    Left out: installed packages, test suites, files that a distribution or a build adds (they are no standard
    module), and the modules that distributions commonly split off or drop.
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
    """How the file at path differs from the published file called name: found and expected, or nothing."""
    expected = PUBLISHED[name]
    try:
        size = path.stat().st_size
        if size != expected.size:
            return f"found {size:,} bytes, expected {expected.size:,}"
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
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
    """The three unpacked files of WikiText-103 in folder, or nothing."""
    texts = tuple(folder / name for name in _WIKITEXT_NAMES)
    missing = [text.name for text in texts if not text.is_file()]
    if len(missing) == len(texts):
        return ()
    if missing:
        raise UserError(f"wikitext-103: {folder} lacks {', '.join(missing)}; put all three wiki.*.tokens files there")
    return texts


def _download(corpus: Corpus, folders: list[Path]) -> Path:
    """Fetch the corpus's downloadable file into the last folder: whole and verified, or not at all."""
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
    """The network's fault: kept apart from a disk that cannot be written."""


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
