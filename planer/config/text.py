"""A user's own text: its files, its splits, and its number of tokens before any work.

Imports neither torch nor NumPy, because every parse of the Snakefile imports it.  Results are kept in scratch/texts/
until the size or date of a file changes.
"""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from planer.config.corpora import CORPORA, Corpus
from planer.errors import UserError
from planer.files import one_line, write_text
from planer.parsing import show

if TYPE_CHECKING:
    from planer.config.model import DataConfig

EOS, UNKNOWN = "<eos>", "<unk>"
RARE = 3
"""Words that occur less often in train become <unk>, as in WikiText: so <unk> is trained, and the vocabulary small."""
CHUNK = 2**16
"""Characters per call of a tokenizer, which then reads on to the end of the line, over at most as many more."""
FOUND = Path("scratch/texts")
"""Folder of the results of ``survey``."""


def text_files(text: str) -> list[Path]:
    """Files that a path or glob names, sorted.

    Raises UserError when there is none, or when one cannot be read.
    """
    names = [text] if os.path.lexists(text) else sorted(glob.glob(text, recursive=True))
    files = [Path(name) for name in names if not os.path.isdir(name)]
    if not files and os.path.isdir(text):
        raise UserError(f"data.text: {show(text)} is a folder; name its files, such as {show(f'{text}/*.txt')}")
    if not files:
        raise UserError(f"data.text: no file matches {show(text)} in {os.getcwd()}; name a file or a glob")
    for file in files:
        if not os.access(file, os.R_OK):
            raise UserError(f"data.text: cannot read {file}; make it readable")
        if not file.is_file():  # reading a pipe would wait for its writer
            raise UserError(f"data.text: {file} is a device or a pipe; name files with text")
    return files


def read_text_files(text: str) -> bytes:
    """The files that a path or glob names, joined by newlines.  Raises UserError when they hold nothing to learn."""
    try:
        content = b"\n".join(path.read_bytes() for path in text_files(text))
    except OSError as error:
        name = error.filename or show(text)
        raise UserError(f"data.text: cannot read {name}: {error.strerror}; make it readable") from error
    if not content.strip():
        raise UserError(f"data.text: {show(text)} is empty; name files with text")
    if not content.strip(content[:1]):  # its loss can become 0, which no other loss can be compared with
        raise UserError(f"data.text: {show(text)} repeats one byte, {content[:1]!r}; name files with text")
    return content


def tokenizer_file(tokenizer: str) -> Path | None:
    """The tokenizer.json that a path names, itself or in a folder; None for ``bytes`` and ``words``.

    Raises UserError when there is no such file.
    """
    if tokenizer in ("bytes", "words"):
        return None
    path = Path(tokenizer, "tokenizer.json") if os.path.isdir(tokenizer) else Path(tokenizer)
    if not os.path.isfile(path):  # Path.is_file raises for names that are too long
        raise UserError(
            f"data.tokenizer: {show(tokenizer)} is no file, nor a folder with a tokenizer.json; "
            "allowed: bytes, words, or the path of one"
        )
    return path


def parse_tokenizer(source: str, document: str):
    """A ``tokenizers.Tokenizer`` that neither truncates nor pads; source names the file in messages.

    Raises UserError when it is not readable.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise UserError(f"{source} needs the package tokenizers; install it, or use bytes or words") from None
    try:
        tokenizer = Tokenizer.from_str(document)
    except Exception as error:  # the library raises no narrower class
        raise UserError(
            f"{source} is no readable tokenizer.json ({one_line(error)}); write it with the package tokenizers"
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def read_tokenizer(path: Path) -> str:
    """The text of a tokenizer.json.  Raises UserError when it is not readable."""
    try:
        document = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data.tokenizer: cannot read {path} ({one_line(error)}); it must be a UTF-8 file") from error
    if len(parse_tokenizer(f"data.tokenizer: {path}", document).get_vocab()) < 2:
        raise UserError(f"data.tokenizer: {path} has fewer than two symbols; train it on text first")
    return document


def encode(source: str, tokenizer, text: str) -> list[int]:
    """Ids of a text; source names the tokenizer in messages.  Raises UserError where it has no id for a symbol."""
    try:
        return tokenizer.encode(text, add_special_tokens=False).ids
    except Exception as error:  # the library raises nothing more special
        raise UserError(
            f"{source} cannot read the text ({one_line(error)}); give it a token for the unknown"
        ) from error


def chunks(text: str) -> Iterator[str]:
    """A text in pieces, each of CHUNK characters and the rest of their last line.

    Where that rest has more than CHUNK characters, the piece ends before its last white space, as words of many
    tokenizers begin with one, or anywhere without any.
    """
    lines = rf".{{1,{CHUNK}}}+[^\n]{{0,{CHUNK}}}+(?:\n|\Z)"
    most = rf".{{1,{2 * CHUNK}}}"
    return (match[0] for match in re.finditer(rf"(?s){lines}|{most}(?=\s)|{most}", text))


def vocab_size_of(tokenizer) -> int:
    """One more than the largest id of a ``tokenizers.Tokenizer``: ids may have gaps."""
    return 1 + max(tokenizer.get_vocab().values(), default=0)


def decode(content: bytes, text: str) -> str:
    """UTF-8 to text.  Raises UserError naming the first wrong byte."""
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"data.text: {show(text)} is not UTF-8: byte {error.start:,} is {content[error.start]:#x}; "
            "convert it, or use tokenizer: bytes"
        ) from error


def digest(content: bytes, document: str | None) -> str:
    """Sha256 of a text and of the tokenizer.json that it is read with, if any."""
    return hashlib.sha256(content if document is None else content + b"\0" + document.encode()).hexdigest()


def three_parts(content: bytes, between_words: bool) -> list[bytes]:
    """The first 90 % of a text, then 5 % and 5 %.

    between_words: cut behind the next space or end of line, never inside a UTF-8 character.
    """
    part = len(content) // 20
    cuts = [len(content) - 2 * part, len(content) - part]
    if between_words:
        cuts = [_boundary(content, cut) for cut in cuts]
    return [content[: cuts[0]], content[cuts[0] : cuts[1]], content[cuts[1] :]]


def _boundary(content: bytes, position: int) -> int:
    """The first position from here on behind a space or end of line that further text follows; without any, the start
    of the next character."""
    if space := re.compile(rb"\s").search(content, max(position - 1, 0), len(content.rstrip())):
        return space.end()
    while position < len(content) and content[position] & 0xC0 == 0x80:
        position += 1
    return position


def words_of(text: str) -> Iterator[str]:
    """Words of a text, with <eos> after every line."""
    for line in StringIO(text):
        yield from line.split()
        yield EOS


def word_vocabulary(train: str) -> list[str]:
    """<eos>, <unk>, then the words of train that are not rare, by falling frequency; ties in order of appearance."""
    counts = Counter(words_of(train)).most_common()
    return [EOS, UNKNOWN, *(word for word, count in counts if count >= RARE and word not in (EOS, UNKNOWN))]


def corpus_of(data: DataConfig) -> Corpus:
    """Size and vocabulary of an experiment's text, from the table of corpora or by ``survey``.

    Raises UserError when the user's own text cannot be used.
    """
    return CORPORA[data.dataset] if data.dataset else survey(data.text, data.tokenizer)


def survey(text: str, tokenizer: str) -> Corpus:
    """Size, checksum and vocabulary of a text; for bytes and words the tokens of its splits too.

    Raises UserError when the text is empty, not UTF-8 where it must be, or cannot be read, or the tokenizer cannot.
    """
    files, given = text_files(text), tokenizer_file(tokenizer)
    stats = [(str(path), *_identity(path)) for path in [*files, *([given] if given else [])]]
    kept = FOUND / f"{hashlib.sha256(json.dumps([tokenizer, RARE, stats]).encode()).hexdigest()[:16]}.json"
    try:
        values = json.loads(kept.read_text())
        return Corpus(**values | {"files": (), "tokens": values["tokens"] and tuple(values["tokens"])})
    except (OSError, ValueError, TypeError, KeyError):  # absent or damaged: survey again
        corpus = _survey(read_text_files(text), text, tokenizer, given)
    write_text(kept, json.dumps(dataclasses.asdict(corpus)))
    return corpus


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _survey(content: bytes, text: str, tokenizer: str, given: Path | None) -> Corpus:
    if tokenizer != "bytes":
        decode(content, text)
    document, tokens = read_tokenizer(given) if given else None, None
    parts = three_parts(content, between_words=tokenizer != "bytes")
    if tokenizer == "bytes":
        unit, vocab_size, tokens = "byte", 256, tuple(map(len, parts))
    elif tokenizer == "words":
        train, *others = (part.decode() for part in parts)
        unit, vocab_size = "word", len(word_vocabulary(train))
        if vocab_size == len((EOS, UNKNOWN)):
            raise UserError(
                f"data.text: {show(text)} has no word {RARE} times; give more text, or use tokenizer: bytes"
            )
        tokens = tuple(sum(1 for _ in words_of(part)) for part in (train, *others))
    else:
        unit, vocab_size = "subword", vocab_size_of(parse_tokenizer(tokenizer, document))
    return Corpus("text", vocab_size, unit, size=len(content), tokens=tokens, sha256=digest(content, document))
