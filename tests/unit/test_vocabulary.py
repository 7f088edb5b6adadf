"""Vocabularies encode and decode text, and so does their tokenizer.json."""

from __future__ import annotations

import json

import pytest

from planer.errors import UserError
from planer.files import write_json
from planer.models.vocabulary import Vocabulary, read_vocabulary

BYTES = Vocabulary(list(range(256)))
LETTERS = Vocabulary(list(b" etaonihsrd"))
WORDS = Vocabulary(["<eos>", "<unk>", "the", "cat", "sat", "\u00e9t\u00e9"])
SUBWORDS = {  # the two bytes of an e with an accent, and one merge
    "version": "1.0",
    "added_tokens": [],
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "\u00c3": 3, "\u00a9": 4}, "merges": [["a", "b"]]},
}

LLAMA = {  # spaces are part of words, and bytes stand for other characters
    "version": "1.0",
    "added_tokens": [],
    "decoder": {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ],
    },
    "model": {
        "type": "BPE",
        "vocab": {"\u2581the": 0, "\u2581cat": 1, "s": 2, "<0xC3>": 3, "<0xA9>": 4, "<0xFF>": 5},
        "merges": [],
        "byte_fallback": True,
    },
}
PARTS = {
    "version": "1.0",
    "added_tokens": [],
    "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
    "model": {
        "type": "WordPiece",
        "vocab": {"play": 0, "##ing": 1},
        "unk_token": "play",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 9,
    },
}


@pytest.fixture
def tokenizers():
    return pytest.importorskip("tokenizers", reason="the package tokenizers is not installed")


@pytest.mark.parametrize(
    ("vocabulary", "text", "ids"),
    [
        (BYTES, "a\u00e9\n", [97, 0xC3, 0xA9, 10]),
        (LETTERS, "the sea", [2, 7, 1, 0, 8, 1, 3]),
        (WORDS, "the cat\n\u00e9t\u00e9", [2, 3, 0, 5]),
    ],
)
def test_text_is_encoded_and_decoded(vocabulary, text, ids):
    assert vocabulary.encode(text) == ids
    assert vocabulary.decode(ids) == text


def test_subwords_are_encoded_and_decoded(tokenizers):
    vocabulary = Vocabulary(SUBWORDS)
    assert vocabulary.kind == "subwords" and vocabulary.size == 5
    assert vocabulary.encode("ab\u00e9a") == [2, 3, 4, 0]
    assert list(vocabulary.pieces([2, 3, 4, 0])) == ["ab", "", "\u00e9", "a"]
    assert vocabulary.decode([2, 3]) == "ab\ufffd"


@pytest.mark.parametrize(
    ("vocabulary", "before", "ids", "pieces"),
    [
        (WORDS, [2], [3, 4, 0, 2], [" cat", " sat", "\n", "the"]),
        (WORDS, [2, 0], [3, 4], ["cat", " sat"]),
        (Vocabulary(LLAMA), [0, 1], [2, 0], ["s", " the"]),
        (Vocabulary(LLAMA), [0], [3, 4, 1], ["", "\u00e9", " cat"]),
        (Vocabulary(LLAMA), [3, 4], [1, 2], [" cat", "s"]),
        (Vocabulary(PARTS), [0], [1, 0], ["ing", " play"]),
    ],
)
def test_text_after_a_prompt_goes_on_where_it_ends(tokenizers, vocabulary, before, ids, pieces):
    assert list(vocabulary.pieces(ids, before)) == pieces
    assert vocabulary.decode(before) + vocabulary.decode(ids, before) == vocabulary.decode([*before, *ids])


def test_wrong_bytes_after_a_character_are_replaced(tokenizers):
    """Decoded together with them, the character would be replaced too."""
    assert list(Vocabulary(LLAMA).pieces([3, 4, 5, 1])) == ["", "\u00e9", "", "\ufffd cat"]
    assert Vocabulary(LLAMA).decode([0, 3, 4, 5, 5]) == "the\u00e9\ufffd\ufffd"


def test_a_character_is_decoded_at_its_last_byte():
    assert list(BYTES.pieces([97, 0xC3, 0xA9, 0xFF])) == ["a", "", "\u00e9", "\ufffd", ""]
    assert list(BYTES.pieces([0xC3])) == ["", "\ufffd"]


@pytest.mark.parametrize(
    ("vocabulary", "prompt", "reason"),
    [
        (BYTES, "", "the prompt '' holds no token"),
        (BYTES, "a\ud800", "the prompt's character '\\ud800' stands for no text; leave it out"),
        (WORDS, " ", "the prompt ' ' holds no token"),
        (LETTERS, "that\n", r"the prompt's byte 0xa ('\n') is not in the vocabulary of vocab.json; leave it out"),
        (WORDS, "the dog", "the prompt's word 'dog' is not in the vocabulary of vocab.json; write <unk> for it"),
    ],
)
def test_a_prompt_outside_the_vocabulary_is_refused(vocabulary, prompt, reason):
    with pytest.raises(UserError) as error:
        vocabulary.encode(prompt)
    assert str(error.value).startswith(reason)


@pytest.mark.parametrize("symbols", [BYTES.symbols, LETTERS.symbols, WORDS.symbols, SUBWORDS])
def test_a_vocabulary_is_read_from_its_file(symbols, tmp_path):
    write_json(tmp_path / "vocab.json", symbols)
    assert read_vocabulary(tmp_path / "vocab.json").symbols == symbols


@pytest.mark.parametrize(
    "text",
    ["", "[", "[]", "3", "[1, 1]", "[256]", '["a", 1]', '["a", "a"]', "[true]", "[null]"]
    + [pytest.param("[" * 100_000, id="deep")],
)
def test_a_wrong_file_is_refused(text, tmp_path):
    (tmp_path / "vocab.json").write_text(text)
    with pytest.raises(UserError, match="vocab.json"):
        read_vocabulary(tmp_path / "vocab.json")


@pytest.mark.parametrize(
    ("vocabulary", "text"),
    [
        (BYTES, "a\u00e9\n \x00z~"),
        (LETTERS, "the sea"),
        (WORDS, "the cat\n\u00e9t\u00e9"),
        (Vocabulary(SUBWORDS), "ab\u00e9"),
    ],
    ids=["bytes", "letters", "words", "subwords"],
)
def test_the_tokenizer_encodes_and_decodes_the_same(tokenizers, vocabulary, text):
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(vocabulary.hugging_face()))
    ids = vocabulary.encode(text)
    assert tokenizer.encode(text).ids == ids
    assert tokenizer.get_vocab_size() == vocabulary.size
    if vocabulary is not WORDS:
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
