"""From a user's own text to token ids: the files that ``planer.data.prepare`` writes for a corpus by name.

Bytes are their own ids, as in pysource.  Words are split as in WikiText.  Subwords are those of a tokenizer.json, which
becomes vocab.json.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from planer.config import text
from planer.data.prepare import write_splits
from planer.errors import UserError
from planer.parsing import show


def prepare_text(name: str, source: Mapping, folder: str | Path) -> dict:
    """Tokenise a user's text into folder, and return its manifest.

    name: of the prepared text.  source: ``text`` and ``tokenizer`` of the configuration, and what
    ``planer.config.text.survey`` found: ``vocab_size`` and ``sha256``.
    Raises UserError when the text or the tokenizer cannot be used, or has changed since the survey.
    """
    content, file = text.read_text_files(source["text"]), text.tokenizer_file(source["tokenizer"])
    document = text.read_tokenizer(file) if file else None
    vocabulary, vocab_size, splits = _numbered(content, source, document)
    if (text.digest(content, document), vocab_size) != (source["sha256"], source["vocab_size"]):
        raise UserError(f"data.text: {show(source['text'])} or its tokenizer was changed just now; run it again")
    manifest = {"dataset": name, "source": source["text"], "tokenizer": source["tokenizer"]}
    manifest |= {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content), "vocab_size": vocab_size}
    return write_splits(Path(folder), manifest, vocabulary, splits, None)


def _numbered(content: bytes, source: Mapping, document: str | None) -> tuple[list | dict, int, Iterator[np.ndarray]]:
    """Vocabulary (symbols in id order, or a tokenizer.json), its size, and the ids of the three splits."""
    if source["tokenizer"] == "bytes":
        parts = text.three_parts(content, between_words=False)
        return list(range(256)), 256, (np.frombuffer(part, np.uint8) for part in parts)
    text.decode(content, source["text"])
    parts = [part.decode() for part in text.three_parts(content, between_words=True)]
    if document is None:
        vocabulary = text.word_vocabulary(parts[0])
        return vocabulary, len(vocabulary), (_words(part, vocabulary) for part in parts)
    tokenizer = text.parse_tokenizer(source["tokenizer"], document)
    vocab_size = text.vocab_size_of(tokenizer)
    return json.loads(document), vocab_size, (_subwords(part, tokenizer, source["tokenizer"]) for part in parts)


def _words(part: str, vocabulary: list[str]) -> np.ndarray:
    """Ids of a text's words; those outside the vocabulary get that of <unk>."""
    ids = {word: i for i, word in enumerate(vocabulary)}
    unknown = ids[text.UNKNOWN]
    return np.fromiter((ids.get(word, unknown) for word in text.words_of(part)), np.min_scalar_type(len(ids) - 1))


def _subwords(part: str, tokenizer, source: str) -> np.ndarray:
    """Ids of a text, in chunks: a tokenizer needs a hundred bytes a character."""
    dtype = np.min_scalar_type(text.vocab_size_of(tokenizer) - 1)
    encoded = (text.encode(f"data.tokenizer: {source}", tokenizer, chunk) for chunk in text.chunks(part))
    return np.concatenate([np.array([], dtype), *(np.array(ids, dtype) for ids in encoded)])
