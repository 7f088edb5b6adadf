"""Corpora become token ids."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import shutil
import zipfile
from collections import Counter

import numpy as np
import pytest
from real_data import real

from planer.config.corpora import CORPORA, PUBLISHED
from planer.data.corpora import SPLITS
from planer.data.prepare import byte_vocabulary, encode_bytes, encode_words, prepare, word_vocabulary
from planer.errors import UserError
from planer.files import read_json


def load(folder):
    splits = [np.load(folder / f"{split}.npy", mmap_mode="r", allow_pickle=False) for split in SPLITS]
    return splits, json.loads((folder / "vocab.json").read_text()), read_json(folder / "manifest.json", "manifest")


def decode(ids, vocabulary) -> bytes:
    return bytes(np.array(vocabulary, np.uint8)[ids])


def test_byte_ids_are_sorted_by_frequency_and_first_appearance():
    text = b"cabbage\n" + b"ab" * 5
    assert byte_vocabulary(text, drop_newlines=False) == [ord(c) for c in "abcge\n"]
    assert byte_vocabulary(text, drop_newlines=True) == [ord(c) for c in "abcge"]


@pytest.mark.parametrize("drop_newlines", [False, True])
@pytest.mark.parametrize("size", [100, 119, 4000])
def test_bytes_survive_a_round_trip_and_are_split_by_position(size, drop_newlines):
    text = bytes(np.random.default_rng(0).integers(0, 40, size, np.uint8))
    vocabulary = byte_vocabulary(text, drop_newlines)
    part = size // 20
    raw = [text[: size - 2 * part], text[size - 2 * part : size - part], text[size - part :]]
    expected = [piece.replace(b"\n", b"") if drop_newlines else piece for piece in raw]
    corpus = CORPORA["enwik8" if drop_newlines else "enwik8-mini"]
    assert [decode(ids, vocabulary) for ids in encode_bytes(text, vocabulary, corpus)] == expected


def test_enwik8_split_sizes():
    splits = encode_bytes(bytes(100_000_000), [0], CORPORA["enwik8-mini"])
    assert [len(ids) for ids in splits] == [90_000_000, 5_000_000, 5_000_000]


def test_text8_splits_have_no_spaces_at_their_ends():
    text = b" a" * 90 + b"a " * 10
    parts = [text[:180], text[180:190], text[190:]]
    vocabulary = byte_vocabulary(text, drop_newlines=False)
    splits = [decode(ids, vocabulary) for ids in encode_bytes(text, vocabulary, CORPORA["text8"])]
    assert splits == [part.strip() for part in parts]
    unchanged = [decode(ids, vocabulary) for ids in encode_bytes(text, vocabulary, CORPORA["enwik8-mini"])]
    assert unchanged == parts


def test_a_byte_outside_the_vocabulary_is_named_with_its_position():
    text = b"a" * 90 + b"ab#aa" + b"a#aaa"
    with pytest.raises(UserError, match=r"text8: byte 35 \('#'\) at offset 2 of valid is not in the vocabulary"):
        list(encode_bytes(text, [ord("a"), ord("b")], CORPORA["text8"]))


def test_files_of_pysource(tmp_path):
    returned = prepare("pysource", tmp_path)
    splits, vocabulary, manifest = load(tmp_path)
    assert returned == manifest
    assert vocabulary == list(range(256))
    assert [ids.dtype for ids in splits] == [np.uint8] * 3
    assert manifest["tokens"] == {"train": 900_000, "valid": 50_000, "test": 50_000}
    assert manifest["bytes"] == 1_000_000 and manifest["vocab_size"] == 256 and not manifest["drop_newlines"]
    assert manifest["python"] == platform.python_version()
    text = b"".join(bytes(ids) for ids in splits)
    assert manifest["sha256"] == hashlib.sha256(text).hexdigest()
    assert text.startswith(b'"""Record of phased-in incompatible language changes.')
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [*(f"{split}.npy" for split in SPLITS), "vocab.json", "manifest.json"]
    )


def test_files_of_enwik8_mini(tmp_path, monkeypatch):
    source = real("enwik8-4MB")
    monkeypatch.setenv("PLANER_DATA", str(source.parent))
    manifest = prepare("enwik8-mini", tmp_path)
    splits, vocabulary, _ = load(tmp_path)
    assert b"".join(decode(ids, vocabulary) for ids in splits) == source.read_bytes()
    assert manifest["vocab_size"] == len(vocabulary) == CORPORA["enwik8-mini"].vocab_size
    assert manifest["tokens"] == {"train": 3_600_000, "valid": 200_000, "test": 200_000}
    assert manifest["source"] == "enwik8-4MB" and "python" not in manifest
    counts = np.bincount(np.concatenate(splits))
    assert (np.diff(counts) <= 0).all()


def test_interrupted_preparation_leaves_no_manifest(tmp_path, monkeypatch):
    prepare("pysource", tmp_path)

    def disk_full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("planer.data.prepare.np.save", disk_full)
    with pytest.raises(UserError, match="cannot write .*train.npy: No space left"):
        prepare("pysource", tmp_path)
    assert not (tmp_path / "manifest.json").exists()
    assert not list(tmp_path.glob(".*"))


def test_words_of_a_small_text(tmp_path):
    text = tmp_path / "wiki.train.tokens"
    text.write_text(" \n = Title = \n \n The the <unk> the , \u00e9t\u00e9 \n", encoding="utf-8")
    vocabulary = word_vocabulary(text)
    assert vocabulary == ["<eos>", "=", "the", "Title", "The", "<unk>", ",", "\u00e9t\u00e9"]
    other = tmp_path / "wiki.valid.tokens"
    other.write_text("the , Title\n\nthe", encoding="utf-8")
    assert encode_words(text, vocabulary).tolist() == [0, 1, 3, 1, 0, 0, 4, 2, 5, 2, 6, 7, 0]
    assert encode_words(other, vocabulary).tolist() == [2, 6, 3, 0, 0, 2, 0]
    other.write_text("the Title\nthe new Title", encoding="utf-8")
    with pytest.raises(UserError, match="wiki.valid.tokens: the word 'new' in line 2 is not in the vocabulary"):
        encode_words(other, vocabulary)


def test_other_text_than_wikitext_is_refused(tmp_path):
    text = tmp_path / "wiki.train.tokens"
    text.write_text("no unknown words here\n")
    with pytest.raises(UserError, match="wiki.train.tokens: no <unk>"):
        word_vocabulary(text)
    text.write_bytes(b"<unk> caf\xe9\n")
    with pytest.raises(UserError, match="wiki.train.tokens: not UTF-8"):
        word_vocabulary(text)


def words_of(path) -> list[str]:
    with path.open(encoding="utf-8") as lines:
        return [word for line in lines for word in [*line.split(), "<eos>"]]


@pytest.fixture
def wikitext(tmp_path, monkeypatch):
    """An unpacked WikiText-103 whose train file is the valid and the test file, with matching counts."""
    for split in ("valid", "test"):
        shutil.copy(real(f"wikitext-103-{split}.tokens"), tmp_path / f"wiki.{split}.tokens")
    train = b"".join((tmp_path / f"wiki.{split}.tokens").read_bytes() for split in ("valid", "test"))
    (tmp_path / "wiki.train.tokens").write_bytes(train)
    monkeypatch.setenv("PLANER_DATA", str(tmp_path))
    corpus = CORPORA["wikitext-103"]
    vocab_size = len(set(words_of(tmp_path / "wiki.train.tokens")))
    small = dataclasses.replace(corpus, vocab_size=vocab_size, tokens=(sum(corpus.tokens[1:]), *corpus.tokens[1:]))
    monkeypatch.setitem(CORPORA, "wikitext-103", small)
    return tmp_path


def test_files_of_wikitext(wikitext):
    manifest = prepare("wikitext-103", wikitext / "out")
    splits, vocabulary, _ = load(wikitext / "out")
    assert manifest["tokens"] == {"train": 463_215, "valid": 217_646, "test": 245_569}
    assert splits[0].dtype == np.uint16
    words = words_of(wikitext / "wiki.train.tokens")
    assert [vocabulary[i] for i in splits[0]] == words
    assert vocabulary[0] == "<eos>"
    frequencies = Counter(word for word in words if word != "<eos>").values()
    assert np.bincount(splits[0])[1:].tolist() == sorted(frequencies, reverse=True)
    raw = b"".join((wikitext / f"wiki.{split}.tokens").read_bytes() for split in SPLITS)
    assert manifest["sha256"] == hashlib.sha256(raw).hexdigest() and manifest["bytes"] == len(raw)


def test_wikitext_from_an_archive_gives_the_same_files(wikitext, tmp_path_factory, monkeypatch):
    unpacked = prepare("wikitext-103", wikitext / "out")
    folder = tmp_path_factory.mktemp("archive")
    archive = folder / "wikitext-103-v1.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for split in SPLITS:
            file.write(wikitext / f"wiki.{split}.tokens", f"wikitext-103/wiki.{split}.tokens")
    content = archive.read_bytes()
    original = PUBLISHED[archive.name]
    published = dataclasses.replace(original, size=len(content), sha256=hashlib.sha256(content).hexdigest())
    monkeypatch.setitem(PUBLISHED, archive.name, published)
    monkeypatch.setenv("PLANER_DATA", str(folder))
    assert prepare("wikitext-103", folder / "out") == unpacked | {"source": archive.name}
    for split in SPLITS:
        ours, theirs = (np.load(home / "out" / f"{split}.npy") for home in (folder, wikitext))
        assert np.array_equal(ours, theirs)


def test_wikitext_of_the_wrong_length_is_refused(wikitext):
    with (wikitext / "wiki.test.tokens").open("a") as file:
        file.write("more\n")
    with pytest.raises(UserError, match="test of wiki.* has 245,571 tokens, expected 245,569"):
        prepare("wikitext-103", wikitext / "out")
    assert not (wikitext / "out" / "manifest.json").exists()


def test_a_wrong_vocabulary_size_is_refused(wikitext, monkeypatch):
    small = CORPORA["wikitext-103"]
    monkeypatch.setitem(CORPORA, "wikitext-103", dataclasses.replace(small, vocab_size=267_735))
    with pytest.raises(UserError, match=rf"found {small.vocab_size:,} symbols in wiki.*, expected 267,735"):
        prepare("wikitext-103", wikitext / "out")
