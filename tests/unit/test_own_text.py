"""A user's own text: files, splits and tokens; a mistake is one line."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import yaml
from toy import ROOT

from planer.config import DataConfig, Experiment
from planer.config.lengths import check_lengths
from planer.config.model import one_source
from planer.config.pretrained import pretrained_names
from planer.config.strict_yaml import read_experiment
from planer.config.text import (
    CHUNK,
    chunks,
    corpus_of,
    survey,
    text_files,
    three_parts,
    tokenizer_file,
    word_vocabulary,
)
from planer.data.corpora import SPLITS
from planer.data.own_text import prepare_text
from planer.errors import UserError
from planer.files import read_json, read_tokens
from planer.parsing import build, merge

DEFAULTS = yaml.safe_load((ROOT / "config/config.yaml").read_text())
TINY = yaml.safe_load((ROOT / "tests/workflow/tiny.yaml").read_text())
LINES = [f"the cat and the dog sat {'well ' * (i % 7)}on mat {i}\n" for i in range(2000)]
TEXT = "".join(LINES)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory with one text."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.txt").write_text(TEXT)
    return tmp_path


@pytest.fixture
def subwords(here):
    """A tokenizer.json in a folder, trained on the text."""
    library = pytest.importorskip("tokenizers", reason="the package tokenizers is not installed")
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    alphabet = library.pre_tokenizers.ByteLevel.alphabet()
    trainer = library.trainers.BpeTrainer(vocab_size=300, show_progress=False, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([TEXT], trainer)
    (here / "tok").mkdir()
    tokenizer.save(str(here / "tok/tokenizer.json"))
    return tokenizer


def source(text="my.txt", tokenizer="bytes") -> dict:
    found = survey(text, tokenizer)
    return {"text": text, "tokenizer": tokenizer, "sha256": found.sha256, "vocab_size": found.vocab_size}


def prepared(tokenizer: str, text: str = "my.txt") -> tuple[list[np.ndarray], object, dict]:
    prepare_text("mine-text", source(text, tokenizer), "out")
    splits = [read_tokens(f"out/{split}.npy") for split in SPLITS]
    with open("out/vocab.json") as file:
        return splits, json.load(file), read_json("out/manifest.json", "manifest")


def refusal(text="my.txt", tokenizer="bytes") -> str:
    with pytest.raises(UserError) as error:
        survey(text, tokenizer)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_ids_of_bytes_are_their_values(here):
    (here / "my.bin").write_bytes(os.urandom(5000))
    splits, vocabulary, manifest = prepared("bytes", "my.bin")
    assert b"".join(bytes(ids) for ids in splits) == (here / "my.bin").read_bytes()
    assert [len(ids) for ids in splits] == [4500, 250, 250]
    assert vocabulary == list(range(256)) and manifest["vocab_size"] == 256
    assert survey("my.bin", "bytes").tokens == (4500, 250, 250)


def test_rare_words_are_unknown(here):
    splits, vocabulary, manifest = prepared("words")
    assert vocabulary[:4] == ["<eos>", "<unk>", "well", "the"]
    assert {"cat", "mat"} < set(vocabulary) and "17" not in vocabulary, "it occurs once"
    words = [vocabulary[i] for ids in splits for i in ids if i]
    assert words == [word if word in vocabulary else "<unk>" for word in TEXT.split()]
    assert all(ids[-1] == 0 for ids in splits)
    found = survey("my.txt", "words")
    assert found.tokens == tuple(manifest["tokens"].values()) == tuple(map(len, splits))
    assert found.vocab_size == manifest["vocab_size"] == len(vocabulary)


def test_words_are_sorted_by_frequency_and_first_appearance():
    text = "b a <unk> <eos> a c\n" * 3 + "c d d\n"
    assert word_vocabulary(text) == ["<eos>", "<unk>", "a", "c", "b"]


def test_subwords_survive_a_round_trip(here, subwords):
    splits, vocabulary, manifest = prepared("tok")
    assert "".join(subwords.decode(ids.tolist()) for ids in splits) == TEXT
    assert splits[0].dtype == np.uint16 and manifest["vocab_size"] == subwords.get_vocab_size() > 256
    assert vocabulary.pop("checksum") and vocabulary == json.loads((here / "tok/tokenizer.json").read_text())
    assert source(tokenizer="tok") == source(tokenizer="tok/tokenizer.json") | {"tokenizer": "tok"}


def test_a_tokenizer_that_truncates_and_pads_reads_the_whole_text(here, subwords):
    subwords.enable_truncation(16)
    subwords.enable_padding(length=32)
    subwords.save("tok/tokenizer.json")
    splits, _, _ = prepared("tok")
    assert "".join(subwords.decode(ids.tolist()) for ids in splits) == TEXT


def test_a_long_text_is_tokenized_in_whole_lines(here, subwords):
    long = TEXT * (2 * CHUNK // len(TEXT) + 1)
    (here / "long.txt").write_text(long)
    splits, _, _ = prepared("tok", "long.txt")
    assert "".join(subwords.decode(ids.tolist()) for ids in splits) == long


@pytest.mark.parametrize(
    "text",
    [
        "ab " * CHUNK,
        "abc" * CHUNK,
        "\u4e16\n" + "\u754c" * 4 * CHUNK + "\n\n",
        "ab\n" + " " * 3 * CHUNK + "c",
        "a b\n" * CHUNK,
    ],
)
def test_chunks_of_a_long_line_are_bounded(text):
    pieces = list(chunks(text))
    assert "".join(pieces) == text and max(map(len, pieces)) <= 2 * CHUNK + 1
    assert len(pieces) <= len(text) / CHUNK + 1


def test_chunks_are_cut_between_words():
    assert "".join(f"{piece}|" for piece in chunks("ab " * CHUNK)).count("ab| ab") == 1
    assert [piece[-1] for piece in chunks("ab cd\n" * CHUNK)] == ["\n"] * 6


@pytest.mark.parametrize("text", ["a b\n" * 500, "ab" * 1000, "\u00e9\u4e16" * 300, "one two"])
def test_words_and_characters_are_not_split(text):
    content = text.encode()
    parts = three_parts(content, between_words=True)
    assert b"".join(parts) == content
    assert [part.decode() for part in parts]
    if " " in text:
        assert [word for part in parts for word in part.split()] == content.split()


@pytest.mark.parametrize("end", ["\n", "\r\n", " \n\n"])
@pytest.mark.parametrize("text", ["\u4e16\u754c" * 1000, "ACGT" * 1500, "one two\n" + "GATTACA" * 900])
def test_a_text_without_spaces_is_split_between_characters(text, end):
    parts = three_parts((text + end).encode(), between_words=True)
    assert "".join(part.decode() for part in parts) == text + end
    assert [len(part) for part in parts] == pytest.approx([5400, 300, 300], rel=0.06)


def test_files_of_a_glob_are_joined_in_order(here):
    (here / "sub").mkdir()
    for name in ("b", "a", "sub/c"):
        (here / f"{name}.md").write_text(name * 100)
    assert [path.as_posix() for path in text_files("*.md")] == ["a.md", "b.md"]
    assert [path.as_posix() for path in text_files("**/*.md")] == ["a.md", "b.md", "sub/c.md"]
    assert survey("*.md", "bytes").size == 201


def test_a_survey_depends_on_the_content_only(here):
    first = source()
    os.utime("my.txt", (1, 1))
    assert source() == first
    (here / "my.txt").write_text(TEXT.replace("cat", "cow"))
    os.utime("my.txt", (1, 1))
    (here / "other.txt").write_text(TEXT.replace("cat", "cow"))
    assert source("other.txt")["sha256"] != first["sha256"]


def test_a_changed_tokenizer_changes_the_survey(here, subwords):
    first = source(tokenizer="tok")
    subwords.add_tokens(["catdog"])
    subwords.save("tok/tokenizer.json")
    later = source(tokenizer="tok")
    assert later["sha256"] != first["sha256"] and later["vocab_size"] == first["vocab_size"] + 1
    with pytest.raises(UserError, match="my.txt' or its tokenizer was changed just now; run it again"):
        prepare_text("mine-text", first, "out")
    assert not os.path.exists("out")


def test_a_text_is_read_again_only_after_a_change(here, monkeypatch):
    first = survey("my.txt", "words")
    with monkeypatch.context() as patched:
        patched.setattr("planer.config.text.read_text_files", lambda text: pytest.fail("it was read"))
        assert survey("my.txt", "words") == first
    (kept,) = (here / "scratch/texts").iterdir()
    kept.write_text("{")
    assert survey("my.txt", "words") == first


@pytest.mark.parametrize(
    ("content", "tokenizer", "reason"),
    [
        (b"", "bytes", "data.text: 'bad.txt' is empty"),
        (b" \n\n", "words", "data.text: 'bad.txt' is empty"),
        (b"a" * 999, "bytes", "data.text: 'bad.txt' repeats one byte, b'a'; name files with text"),
        (b"no word comes as often as this word", "words", "data.text: 'bad.txt' has no word 3 times; give more text"),
        (b"caf\xe9 au lait", "words", "data.text: 'bad.txt' is not UTF-8: byte 3 is 0xe9; convert it, or use"),
        (b"caf\xe9 au lait", "tok", "data.text: 'bad.txt' is not UTF-8: byte 3 is 0xe9"),
    ],
)
def test_an_unusable_text_is_refused(here, content, tokenizer, reason):
    (here / "bad.txt").write_bytes(content)
    (here / "tok").mkdir()
    (here / "tok/tokenizer.json").write_text("{}")
    assert refusal("bad.txt", tokenizer).startswith(reason)


def test_text_that_is_not_utf8_works_as_bytes(here):
    (here / "bad.txt").write_bytes(b"caf\xe9 au lait")
    assert survey("bad.txt", "bytes").size == 12


def test_missing_and_special_files_are_refused(here):
    assert "no file matches 'no*.txt'" in refusal("no*.txt")
    (here / "folder").mkdir()
    os.mkfifo("pipe.txt")
    assert refusal("p*.txt") == "data.text: pipe.txt is a device or a pipe; name files with text"
    assert refusal("folder") == "data.text: 'folder' is a folder; name its files, such as 'folder/*.txt'"


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ("nope", "is no readable tokenizer.json"),
        ("{}", "is no readable tokenizer.json"),
        (b"\xff\xfe", "cannot read"),
        ('{"model": {"type": "BPE", "vocab": {}, "merges": []}}', "has fewer than two symbols; train it on text first"),
    ],
)
def test_an_unreadable_tokenizer_is_refused(here, document, reason):
    pytest.importorskip("tokenizers", reason="the package tokenizers is not installed")
    (here / "t.json").write_bytes(document if isinstance(document, bytes) else document.encode())
    line = refusal(tokenizer="t.json")
    assert "data.tokenizer: " in line and reason in line and "t.json" in line


def test_a_missing_tokenizer_is_refused(here):
    (here / "empty").mkdir()
    for name in ("letters", "empty", "no/tokenizer.json", "x" * 5000):
        with pytest.raises(UserError, match=f"data.tokenizer: '{name[:50]}.* is no file, nor a folder with"):
            tokenizer_file(name)


def test_a_tokenizer_without_an_unknown_token_is_refused(here):
    tokenizers = pytest.importorskip("tokenizers", reason="the package tokenizers is not installed")
    tokenizers.Tokenizer(tokenizers.models.WordLevel({"the": 0, "a": 1}, unk_token="<unk>")).save("t.json")
    with pytest.raises(UserError, match="data.tokenizer: t.json cannot read the text .*give it a token for the unknow"):
        prepared("t.json")


def test_a_missing_package_tokenizers_is_named(here, monkeypatch):
    (here / "t.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert refusal(tokenizer="t.json").endswith(
        "t.json needs the package tokenizers; install it, or use bytes or words"
    )


def experiment(**data) -> Experiment:
    return build(Experiment, merge(*map(one_source, (DEFAULTS, TINY, {"data": data} if data else {}))))


def test_the_last_named_source_is_used():
    assert experiment().data == DataConfig("pysource", "", "bytes")
    assert experiment(text="my.txt", tokenizer="words").data == DataConfig("", "my.txt", "words")
    layers = [{"data": {"text": "my.txt", "tokenizer": "words"}}, {"data": {"dataset": "text8"}}]
    values = merge(*map(one_source, (DEFAULTS, TINY, *layers)))
    assert build(Experiment, values).data == DataConfig("text8", "", "bytes")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ({"text": "my.txt", "dataset": "text8"}, "data.text 'my.txt' and data.dataset 'text8'; keep one"),
        ({"dataset": "text8", "tokenizer": "words"}, "data.tokenizer is for data.text; text8 has its own"),
        ({"dataset": "", "text": ""}, "data.dataset: name a dataset or a text"),
        ({"text": 3}, "data.text is 3; it must be text"),
        ({"txt": "my.txt"}, "unknown key data.txt; did you mean data.text?"),
    ],
)
def test_an_ambiguous_source_is_refused(data, reason):
    with pytest.raises(UserError) as error:
        experiment(**data)
    assert reason in str(error.value)


@pytest.mark.parametrize(
    ("size", "split"), [(100, "valid"), (40_000, "test")], ids=["almost nothing", "too little to time"]
)
def test_a_short_text_is_refused(here, size, split):
    (here / "my.txt").write_bytes(b"xy" * (size // 2))
    config = experiment(text="my.txt")
    work = dataclasses.replace(config.workload, batch=64)
    with pytest.raises(UserError, match=rf"the {split} text has at most {size // 20:,} tokens, .* needs [\d,]+; lower"):
        check_lengths(dataclasses.replace(config, workload=work), corpus_of(config.data))


def test_shipped_experiments_have_enough_text():
    files = {file.stem: file for file in sorted((ROOT / "config/experiments").glob("*.yaml"))}
    for name in files.keys() - pretrained_names(files):
        config = build(Experiment, merge(*map(one_source, (DEFAULTS, *read_experiment(name, files)))))
        check_lengths(config, corpus_of(config.data))


def test_an_experiment_extends_the_values_of_its_base(tmp_path):
    files = {name: tmp_path / f"{name}.yaml" for name in ("mine", "small", "loop", "lost", "odd")}
    files["small"].write_text("model: {d_model: 32}\n")
    files["mine"].write_text("base: small\ndata: {text: my.txt}\n")
    files["loop"].write_text("base: loop\n")
    files["lost"].write_text("base: nowhere\n")
    files["odd"].write_text("base: [mine]\n")
    assert read_experiment("mine", files) == [{"model": {"d_model": 32}}, {"data": {"text": "my.txt"}}]
    for name, reason in (
        ("loop", "'loop' is based on itself"),
        ("lost", "unknown experiment 'nowhere'; allowed: loop, lost"),
        ("odd", r"unknown experiment \['mine'\]"),
    ):
        with pytest.raises(UserError, match=reason):
            read_experiment(name, files)


def test_a_survey_imports_neither_torch_nor_numpy(here):
    code = "import sys; from planer.config.text import survey; survey('my.txt', 'words')"
    code += "; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
