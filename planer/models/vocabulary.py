"""Text and token ids: what vocab.json of a prepared text says, for prompts and for what a network writes."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from planer.config.text import EOS, UNKNOWN, encode, parse_tokenizer, vocab_size_of
from planer.errors import Damaged, UserError
from planer.files import CHECKSUM, one_line, parse_json, read_text
from planer.parsing import show

CONTEXT = 4
"""Ids of a prompt that the first one after it is decoded with: a character may take as many."""


@dataclass(frozen=True)
class Vocabulary:
    """Symbols in id order, bytes as numbers or words as text; or a tokenizer.json.

    source: where it comes from, for messages.
    """

    symbols: list | dict
    source: str = "vocab.json"

    @property
    def kind(self) -> str:
        """bytes, words or subwords."""
        if isinstance(self.symbols, dict):
            return "subwords"
        return "bytes" if isinstance(self.symbols[0], int) else "words"

    @cached_property
    def size(self) -> int:
        """One more than the largest id."""
        return vocab_size_of(self._tokenizer) if self.kind == "subwords" else len(self.symbols)

    @cached_property
    def _ids(self) -> dict:
        return {symbol: i for i, symbol in enumerate(self.symbols)}

    @cached_property
    def _tokenizer(self):
        return parse_tokenizer(self.source, json.dumps(self.symbols))

    def encode(self, text: str) -> list[int]:
        """Ids of a text.  Raises UserError for an empty text and for a symbol outside the vocabulary."""
        if self.kind == "subwords":
            ids = encode(self.source, self._tokenizer, text)
        else:
            symbols = _bytes(text) if self.kind == "bytes" else _words(text)
            ids = [self._id(symbol) for symbol in symbols]
        if not ids:
            raise UserError(f"the prompt {show(text)} holds no token; write some text")
        return ids

    def _id(self, symbol: int | str) -> int:
        if symbol not in self._ids:
            name = f"byte {symbol:#x} ({chr(symbol)!r})" if self.kind == "bytes" else f"word {show(symbol)}"
            advice = f"write {UNKNOWN} for it" if UNKNOWN in self._ids else "leave it out"
            raise UserError(f"the prompt's {name} is not in the vocabulary of {self.source}; {advice}")
        return self._ids[symbol]

    def decode(self, ids: Iterable[int], before: Sequence[int] = ()) -> str:
        """Text of ids that follow others; bytes that are no UTF-8 become U+FFFD."""
        return "".join(self.pieces(ids, before))

    def pieces(self, ids: Iterable[int], before: Sequence[int] = ()) -> Iterator[str]:
        """Text of ids, as soon as it is known.  before: ids of the text that it follows, such as a prompt's."""
        if self.kind == "bytes":
            decoder = codecs.getincrementaldecoder("utf-8")("replace")
            yield from (decoder.decode(bytes([self.symbols[i]])) for i in ids)
            yield decoder.decode(b"", final=True)
        elif self.kind == "words":
            yield from self._word_pieces(ids, before)
        else:
            yield from self._subword_pieces(ids, before)

    def _word_pieces(self, ids: Iterable[int], before: Sequence[int]) -> Iterator[str]:
        line_begins = not before or self.symbols[before[-1]] == EOS
        for symbol in (self.symbols[i] for i in ids):
            yield "\n" if symbol == EOS else symbol if line_begins else f" {symbol}"
            line_begins = symbol == EOS

    def _subword_pieces(self, ids: Iterable[int], before: Sequence[int]) -> Iterator[str]:
        """Text between two ids depends on both, so ids are decoded together with those of the piece before."""
        last, new = list(before[-CONTEXT:]), []
        for i in ids:
            new.append(i)
            piece = self._following(last, new)
            if piece and not piece.endswith("\ufffd"):
                last, new = new, []
                yield piece
            else:  # an unfinished character
                yield ""
        if new:
            yield self._following(last, new)

    def _following(self, before: list[int], ids: list[int]) -> str:
        """What the tokenizer writes for ids after others."""
        decode = partial(self._tokenizer.decode, skip_special_tokens=False)
        start, whole = decode(before), decode([*before, *ids])
        return whole[len(start) :] if whole.startswith(start) else decode(ids)  # wrong bytes change characters before

    def hugging_face(self) -> dict:
        """The same as a tokenizer.json."""
        if self.kind == "subwords":
            return self.symbols
        parts = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor", "decoder"))
        parts |= {"version": "1.0", "added_tokens": []}
        if self.kind == "words":
            lines = {"type": "Replace", "pattern": {"String": "\n"}, "content": f" {EOS} "}
            model = {"type": "WordLevel", "vocab": self._ids, "unk_token": UNKNOWN}
            return parts | {"normalizer": lines, "pre_tokenizer": {"type": "WhitespaceSplit"}, "model": model}
        level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        letters = _letters_of_bytes()
        vocab = {letters[byte]: i for byte, i in self._ids.items()}
        return parts | {
            "pre_tokenizer": level,
            "decoder": level,
            "model": {"type": "BPE", "vocab": vocab, "merges": []},
        }


def read_vocabulary(path: str | Path) -> Vocabulary:
    """Read the vocab.json of a prepared text, or a tokenizer.json.  Raises UserError when it is neither."""
    text = read_text(path)
    if text.lstrip().startswith("{"):
        return Vocabulary({key: value for key, value in parse_json(path, text).items() if key != CHECKSUM}, str(path))
    try:
        symbols = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Damaged(path, f"is no valid JSON ({one_line(error)})") from error
    is_bytes = isinstance(symbols, list) and all(type(symbol) is int and 0 <= symbol < 256 for symbol in symbols)
    is_words = isinstance(symbols, list) and all(isinstance(symbol, str) for symbol in symbols)
    if not symbols or not (is_bytes or is_words) or len(set(symbols)) < len(symbols):
        raise Damaged(path, "does not list bytes or words, each once")
    return Vocabulary(symbols, str(path))


def _bytes(text: str) -> bytes:
    """UTF-8, or the bytes that Python could not read from a command line."""
    try:
        return text.encode(errors="surrogateescape")
    except UnicodeEncodeError as error:
        raise UserError(f"the prompt's character {text[error.start]!a} stands for no text; leave it out") from error


def _words(text: str) -> list[str]:
    """Words of a prompt, with <eos> for each end of line."""
    first, *lines = (line.split() for line in text.split("\n"))
    return first + [word for line in lines for word in [EOS, *line]]


def _letters_of_bytes() -> dict[int, str]:
    """The letter that ByteLevel writes for each byte: the printable ones of Latin-1 are their own, the others follow
    from U+0100 on."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in own]
    return {byte: chr(byte) for byte in own} | {byte: chr(0x100 + i) for i, byte in enumerate(others)}
