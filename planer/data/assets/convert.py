"""From files of packages to what planer's readers take: texts, labelled tables, Hugging Face folders."""

from __future__ import annotations

import bz2
import gzip
import shutil
import string
import tarfile
from collections.abc import Callable, Iterable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from planer.errors import UserError

SEED = 0
"""Of the shuffles: sources are sorted by class, or by the alphabet."""
MOVIES = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"


def labelled_table(source: Path, folder: Path) -> None:
    """<folder's name>-train.tab and -test.tab, three header lines and ``label<tab>text``, to train.tsv and test.tsv."""
    for split in ("train", "test"):
        with open(source / f"{folder.name}-{split}.tab", encoding="utf-8", newline="\n") as file:
            rows = [line.rstrip("\r\n").partition("\t")[::2] for line in file][3:]
        _write_table(folder / f"{split}.tsv", _shuffled([(text, label) for label, text in rows if text.strip()]))


def movie_sentiment(source: Path, folder: Path) -> None:
    """Snippets of film reviews with their mean score by people, -4 to 4, to train.tsv, valid.tsv and test.tsv.

    The label is the score's sign; snippets of score 0 are left out.  Shares: 80 %, 10 %, 10 %.
    """
    with tarfile.open(source / "hutto_ICWSM_2014.tar.gz") as archive:
        lines = archive.extractfile(MOVIES).read().decode("utf-8").splitlines()
    scored = [line.split("\t", 2)[1:] for line in lines if line]
    rows = _shuffled([(text, "positive" if float(score) > 0 else "negative") for score, text in scored if float(score)])
    tenth = len(rows) // 10
    _write_table(folder / "train.tsv", rows[2 * tenth :])
    _write_table(folder / "valid.tsv", rows[:tenth])
    _write_table(folder / "test.tsv", rows[tenth : 2 * tenth])


def essays(source: Path, folder: Path) -> None:
    """HTML pages to their text, one after the other by name, in prose.txt."""
    pages = []
    for path in sorted(source.glob("*.html")):
        page = _Text()
        page.feed(path.read_text(encoding="utf-8", errors="replace"))
        pages.append(page.text())
    (folder / "prose.txt").write_text("\n\n".join(page for page in pages if page) + "\n", encoding="utf-8")


def dictionary(source: Path, folder: Path) -> None:
    """Entries of a dictd dictionary in random order, in dictionary.txt.

    The index has lines ``headword<tab>offset<tab>length`` in base 64; several headwords may share an entry.
    """
    content = gzip.decompress((source / "gcide.dict.dz").read_bytes())
    lines = (source / "gcide.index").read_bytes().decode("utf-8", errors="replace").split("\n")
    fields = [line.split("\t") for line in lines if line and not line.startswith("00-database")]
    places = sorted({(_base64(offset), _base64(length)) for _, offset, length, *_ in fields})
    entries = [content[offset : offset + length].strip() for offset, length in places]
    (folder / "dictionary.txt").write_bytes(b"\n\n".join(_shuffled(entries)) + b"\n")


def unpacked(source: Path, folder: Path) -> None:
    """The one .bz2 file to pages.xml."""
    (path,) = source.glob("*.bz2")
    (folder / "pages.xml").write_bytes(bz2.decompress(path.read_bytes()))


def gpt2_vocabulary(source: Path, folder: Path) -> None:
    """encoder.json and vocab.bpe to vocab.json and merges.txt, the names that transformers reads."""
    shutil.copy(source / "encoder.json", folder / "vocab.json")
    shutil.copy(source / "vocab.bpe", folder / "merges.txt")


def gguf_network(source: Path, folder: Path) -> None:
    """A quantized network in the GGUF format to a Hugging Face folder in single precision."""
    from planer.pretrained.gguf import save_dequantized

    (network,), readers = source.glob("*.gguf"), sorted(source.parent.glob("gguf/*.whl"))
    if not readers:
        raise UserError(f"{folder.name} is made with the asset gguf; fetch both: gguf {source.name}")
    save_dequantized(network, folder, readers[0])


CONVERTERS: dict[str, Callable[[Path, Path], None]] = {
    converter.__name__: converter
    for converter in (labelled_table, movie_sentiment, essays, dictionary, unpacked, gpt2_vocabulary, gguf_network)
}
"""Each takes the folder of an asset, and a new folder that it fills."""


class _Text(HTMLParser):
    """The words of a page, a line for each block; no scripts and styles."""

    HIDDEN = ("script", "style", "head")
    INLINE = ("a", "b", "i", "em", "strong", "span", "font", "u", "sup", "sub", "small", "code", "tt")

    def __init__(self):
        super().__init__()
        self._parts: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self._hidden += tag in self.HIDDEN
        if tag not in self.INLINE:
            self._parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in self.HIDDEN
        if tag not in self.INLINE:
            self._parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self._parts.append(data.replace("\n", " "))

    def text(self) -> str:
        lines = (" ".join(line.split()) for line in "".join(self._parts).split("\n"))
        return "\n".join(line for line in lines if line)


def _base64(digits: str) -> int:
    """A number as dictd writes it, the most significant digit first."""
    alphabet = string.ascii_uppercase + string.ascii_lowercase + string.digits + "+/"
    number = 0
    for digit in digits:
        number = number * 64 + alphabet.index(digit)
    return number


def _shuffled(items: list) -> list:
    return [items[i] for i in np.random.default_rng(SEED).permutation(len(items))]


def _write_table(path: Path, rows: Iterable[tuple[str, str]]) -> None:
    """Texts, whose white space becomes single spaces, and their labels."""
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write("text\tlabel\n")
        file.writelines(f"{' '.join(text.split())}\t{label}\n" for text, label in rows)
