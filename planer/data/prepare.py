"""From a corpus to token ids: train.npy, valid.npy, test.npy, vocab.json and manifest.json.

Byte corpora are cut 90/5/5 by raw bytes.  Symbols get ids by falling frequency over the whole text, ties in order of
appearance (the conversion of Transformer-XL).  In pysource every byte is its id.  The splits of text8 lose the spaces
at their ends, as in Transformer-XL's prep_text8.py.  Word corpora come in three files.  Every line ends in ``<eos>``
(id 0), and the other words get ids by falling frequency in train alone.
"""

from __future__ import annotations

import hashlib
import platform
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib.resources.abc import Traversable
from pathlib import Path

import numpy as np

from planer.config.corpora import Corpus, lookup
from planer.config.text import EOS, UNKNOWN
from planer.data.corpora import SPLITS, find, read
from planer.errors import UserError
from planer.files import file_sha256, one_line, replacing, write_json


def prepare(name: str, folder: str | Path) -> dict:
    """Find the corpus called name, tokenise it into folder, and return its manifest.

    The arrays are one-dimensional, of the smallest unsigned type that holds the vocabulary; vocab.json lists the
    symbols in id order (bytes as numbers).  The manifest is written last: where it exists, all files are complete.
    Raises UserError when the corpus is not found or differs from the published one.
    """
    found = find(name)
    corpus = lookup(name)
    manifest = {"dataset": name, "source": found.source, "drop_newlines": corpus.drop_newlines}
    if name == "pysource":
        manifest["python"] = platform.python_version()
    if corpus.unit == "byte":
        text = read(corpus, found)
        manifest |= {"sha256": hashlib.sha256(text).hexdigest(), "bytes": len(text)}
        vocabulary = list(range(256)) if name == "pysource" else byte_vocabulary(text, corpus.drop_newlines)
        splits = encode_bytes(text, vocabulary, corpus)
    else:
        print(f"{name}: tokenising {found.source} (about two minutes)", flush=True)
        manifest |= _digest(found.texts)
        vocabulary = word_vocabulary(found.texts[0])
        splits = (encode_words(text, vocabulary) for text in found.texts)
    if len(vocabulary) != corpus.vocab_size:
        raise UserError(
            f"{name}: found {len(vocabulary):,} symbols in {found.source}, expected {corpus.vocab_size:,}; "
            "replace it by the published file"
        )
    return write_splits(Path(folder), manifest, vocabulary, splits, corpus.tokens)


def byte_vocabulary(text: bytes, drop_newlines: bool) -> list[int]:
    """Bytes that occur in text by falling frequency, ties in order of appearance."""
    counts = np.bincount(np.frombuffer(text, np.uint8), minlength=256)
    if drop_newlines:
        counts[ord("\n")] = 0
    return sorted(np.flatnonzero(counts).tolist(), key=lambda byte: (-counts[byte], text.find(byte)))


def encode_bytes(text: bytes, vocabulary: list[int], corpus: Corpus) -> Iterator[np.ndarray]:
    """Ids of the three splits: the first 90 % of text, then 5 % and 5 %.

    Newlines and the white space at the ends of a split are dropped where the corpus says so.
    Raises UserError naming the first byte outside the vocabulary, its split and its offset there.
    """
    ids, in_vocabulary = np.zeros(256, np.uint8), np.zeros(256, bool)
    ids[vocabulary], in_vocabulary[vocabulary] = np.arange(len(vocabulary)), True
    start, part = 0, len(text) // 20
    for split, end in zip(SPLITS, (len(text) - 2 * part, len(text) - part, len(text)), strict=True):
        piece, start = text[start:end], end
        piece = piece.strip() if corpus.strip_splits else piece
        content = np.frombuffer(piece.replace(b"\n", b"") if corpus.drop_newlines else piece, np.uint8)
        if not (inside := in_vocabulary[content]).all():
            offset = int(inside.argmin())
            raise UserError(
                f"{corpus.name}: byte {content[offset]} ({chr(content[offset])!r}) at offset {offset:,} of {split} "
                "is not in the vocabulary; remove it, or use the text that the vocabulary was made from"
            )
        yield ids[content]


def word_vocabulary(train: Traversable) -> list[str]:
    """``<eos>``, then the words of train by falling frequency, ties in order of appearance.

    Raises UserError when ``<unk>`` is not among them: the file is not WikiText.
    """
    counts: Counter[str] = Counter()
    for words in _lines(train):
        counts.update(words)
    if UNKNOWN not in counts:
        raise UserError(f"{train.name}: no {UNKNOWN} in it; replace it by the published file")
    return [EOS, *(word for word, _ in counts.most_common() if word != EOS)]


def encode_words(text: Traversable, vocabulary: list[str]) -> np.ndarray:
    """Ids of a text's words, with ``<eos>`` after every line, blank ones included.

    Raises UserError naming the first word outside the vocabulary and its line: WikiText's own three files have none.
    """
    ids = {word: i for i, word in enumerate(vocabulary)}

    def encoded() -> Iterator[int]:
        for line, words in enumerate(_lines(text), start=1):
            try:
                yield from [ids[word] for word in words]
            except KeyError as error:
                raise UserError(
                    f"{text.name}: the word {one_line(error, 80)} in line {line:,} is not in the vocabulary of the "
                    "training text; replace it by the published file"
                ) from error
            yield ids[EOS]

    return np.fromiter(encoded(), np.min_scalar_type(len(vocabulary) - 1))


def _lines(text: Traversable) -> Iterator[list[str]]:
    """The words of each line."""
    with text.open("r", encoding="utf-8") as lines:
        try:
            for line in lines:
                yield line.split()
        except UnicodeDecodeError as error:
            raise UserError(f"{text.name}: not UTF-8 ({error.reason}); replace it by the published file") from error


def _digest(texts: Iterable[Traversable]) -> dict:
    """Sha256 and size in bytes of several texts, concatenated."""
    sha256, size = hashlib.sha256(), 0
    for text in texts:
        with text.open("rb") as file:
            while chunk := file.read(1 << 20):
                sha256.update(chunk)
                size += len(chunk)
    return {"sha256": sha256.hexdigest(), "bytes": size}


def write_splits(
    folder: Path,
    manifest: dict,
    vocabulary: list | dict,
    splits: Iterable[np.ndarray],
    expected: tuple[int, ...] | None,
) -> dict:
    """Write everything, the manifest last.

    vocabulary: symbols in id order, or a tokenizer.json; manifest says vocab_size then.
    Raises UserError when a split is empty or its number of tokens is not the expected one.
    """
    (folder / "manifest.json").unlink(missing_ok=True)
    counts, sha256 = {}, {}
    for split, ids in zip(SPLITS, splits, strict=True):
        counts[split] = len(ids)
        if not len(ids):
            raise UserError(f"{manifest['dataset']}: the {split} text of {manifest['source']} is empty; give more text")
        if expected and len(ids) != expected[SPLITS.index(split)]:
            raise UserError(
                f"{manifest['dataset']}: {split} of {manifest['source']} has {len(ids):,} tokens, "
                f"expected {expected[SPLITS.index(split)]:,}; replace it by the published file"
            )
        with replacing(folder / f"{split}.npy") as temporary, temporary.open("wb") as file:
            np.save(file, ids, allow_pickle=False)
        sha256 |= {f"{split}.npy": file_sha256(folder / f"{split}.npy")}
    write_json(folder / "vocab.json", vocabulary)
    vocab_size = manifest.get("vocab_size", len(vocabulary))
    manifest = {**manifest, "tokens": counts, "vocab_size": vocab_size, "files_sha256": sha256}
    write_json(folder / "manifest.json", manifest)
    return manifest
