"""Finding, verifying and downloading corpora; downloads come from file:// URLs."""

from __future__ import annotations

import hashlib
import sysconfig
import zipfile
from pathlib import Path

import pytest
from real_data import real

from planer.config.corpora import CORPORA, PUBLISHED, Corpus, Published, entry
from planer.data import corpora
from planer.data.corpora import find, read, standard_library
from planer.errors import UserError

TEXT = b"one two three\n" * 10


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory, and a small corpus called toy."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PLANER_DATA", raising=False)
    monkeypatch.setitem(CORPORA, "toy", Corpus("toy", 9, "byte", ("toy", "toy.zip"), 100))
    archive = tmp_path / "server" / "toy.zip"
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("toy", TEXT)
    publish(monkeypatch, "toy", TEXT)
    publish(monkeypatch, "toy.zip", archive.read_bytes(), members=("toy",), url=archive.as_uri())
    return tmp_path


def publish(monkeypatch, name, content, **more):
    published = Published(len(content), hashlib.sha256(content).hexdigest(), **more)
    monkeypatch.setitem(PUBLISHED, name, published)


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_every_corpus_has_checksums_and_an_address():
    assert all(file in PUBLISHED for corpus in CORPORA.values() for file in corpus.files)
    assert all(PUBLISHED[corpus.files[-1]].url for corpus in CORPORA.values() if corpus.files)


def test_planer_data_comes_before_the_working_directory(here, monkeypatch):
    write(here / "data" / "toy", TEXT)
    assert find("toy").texts == (Path("data/toy"),)
    elsewhere = write(here / "elsewhere" / "toy", TEXT)
    monkeypatch.setenv("PLANER_DATA", str(elsewhere.parent))
    assert find("toy").texts == (elsewhere,)


def test_archive_member_is_read_without_extracting(here):
    write(here / "data" / "toy.zip", (here / "server" / "toy.zip").read_bytes())
    found = find("toy")
    assert found.source == "toy.zip"
    assert read(CORPORA["toy"], found) == TEXT[:100]
    assert [path.name for path in (here / "data").iterdir()] == ["toy.zip"]


def test_truncated_file_is_an_error_with_both_sizes(here, monkeypatch):
    broken = write(here / "elsewhere" / "toy", TEXT[:-1])
    write(here / "data" / "toy", TEXT)
    monkeypatch.setenv("PLANER_DATA", str(broken.parent))
    with pytest.raises(UserError, match=rf"{broken}: found 139 bytes, expected 140; .*remove it") as error:
        find("toy")
    assert "\n" not in str(error.value)


def test_changed_file_is_an_error_with_both_hashes(here):
    write(here / "data" / "toy", TEXT[:-1] + b"!")
    with pytest.raises(UserError, match=rf"data/toy: found sha256 [0-9a-f]{{64}}, expected {sha256(TEXT)}"):
        find("toy")


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_download_is_verified_kept_and_used_again(here, monkeypatch, capsys):
    assert read(CORPORA["toy"], find("toy")) == TEXT[:100]
    assert [path.name for path in (here / "data").iterdir()] == ["toy.zip"]
    assert "downloading" in capsys.readouterr().out
    monkeypatch.setattr(corpora, "_fetch", lambda published: pytest.fail("downloaded twice"))
    find("toy")


def test_wrong_download_is_deleted(here):
    (here / "server" / "toy.zip").write_bytes(b"<html>try later</html>")
    with pytest.raises(UserError, match=r"download of file://.*toy.zip: found 22 bytes, expected \d+; .*PLANER_DATA"):
        find("toy")
    assert list((here / "data").iterdir()) == []


def test_failed_download_names_the_searched_folders(here, monkeypatch):
    (here / "elsewhere").mkdir()
    monkeypatch.setenv("PLANER_DATA", str(here / "elsewhere"))
    (here / "server" / "toy.zip").unlink()
    pattern = rf"^toy: no toy or toy.zip in {here}/elsewhere or data, and downloading .* failed \(.*\); set PLANER_DATA"
    with pytest.raises(UserError, match=pattern) as error:
        find("toy")
    assert "\n" not in str(error.value)
    assert list((here / "data").iterdir()) == []


def test_planer_data_must_be_a_folder(here, monkeypatch):
    monkeypatch.setenv("PLANER_DATA", str(here / "nowhere"))
    with pytest.raises(UserError, match="PLANER_DATA: .*nowhere is not a folder"):
        find("toy")


def test_unknown_corpus_is_refused():
    with pytest.raises(UserError, match="'enwiki8'; allowed: pysource, enwik8,"):
        find("enwiki8")


@pytest.mark.parametrize("folder", ["data", "data/wikitext-103"])
def test_unpacked_wikitext_needs_all_three_files(here, folder):
    for split in ("train", "valid"):
        write(here / folder / f"wiki.{split}.tokens", b" a \n")
    with pytest.raises(UserError, match=f"{folder} lacks wiki.test.tokens"):
        find("wikitext-103")
    write(here / folder / "wiki.test.tokens", b" a \n")
    assert [text.name for text in find("wikitext-103").texts] == [
        f"wiki.{s}.tokens" for s in ("train", "valid", "test")
    ]


def test_standard_library_leaves_out_files_that_differ_between_installations(tmp_path):
    kept = ["abc.py", "asyncio/base_events.py", "json/__init__.py", "json/decoder.py", "zipfile.py"]
    left_out = [
        "site-packages/torch/nn.py",
        "test/test_abc.py",
        "unittest/test/support.py",
        "ctypes/tests/x.py",
        "idlelib/idle_test/x.py",
        "tkinter/ttk.py",
        "sitecustomize.py",
        "_sysconfigdata__linux_x86_64-linux-gnu.py",
        "config-3.11-x86_64-linux-gnu/python-config.py",
        "abc.txt",
    ]
    for name in [*left_out, *reversed(kept)]:
        write(tmp_path / name, b"")
    assert [path.relative_to(tmp_path).as_posix() for path in standard_library(tmp_path)] == kept


def test_pysource_is_this_interpreters_library_and_repeatable():
    found = find("pysource")
    text = read(CORPORA["pysource"], found)
    assert len(text) == 1_000_000
    assert text == read(CORPORA["pysource"], find("pysource"))
    first = found.texts[0].read_bytes()
    assert found.texts[0].name == "__future__.py" and text.startswith(first + b"\n")
    assert found.source == Path(sysconfig.get_path("stdlib")).name


def test_too_little_source_text_is_an_error(tmp_path):
    write(tmp_path / "abc.py", b"x")
    with pytest.raises(UserError, match="holds 1 bytes of text, needed 1,000,000"):
        read(CORPORA["pysource"], corpora.Found("lib", standard_library(tmp_path)))


def test_head_of_enwik8_is_recognised(monkeypatch):
    path = real("enwik8-4MB")
    monkeypatch.setenv("PLANER_DATA", str(path.parent))
    found = find("enwik8-mini")
    assert sha256(read(CORPORA["enwik8-mini"], found)) == PUBLISHED["enwik8-mini"].sha256


def test_the_entry_of_a_corpus_does_not_depend_on_others(here, monkeypatch):
    before = entry("enwik8-mini")
    assert before["vocab_size"] == 200
    assert list(before["files"]) == ["enwik8-4MB", "enwik8-mini", "enwik8", "enwik8.zip"]
    monkeypatch.setitem(CORPORA, "another", CORPORA["toy"])
    monkeypatch.setitem(PUBLISHED, "toy", PUBLISHED["text8"])
    assert entry("enwik8-mini") == before
