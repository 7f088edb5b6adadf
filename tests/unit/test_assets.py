"""Assets: fetched from packages, verified by checksums, and converted."""

from __future__ import annotations

import bz2
import gzip
import io
import re
import shutil
import string
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from planer.data import assets
from planer.data.assets.clients import Package, members
from planer.data.assets.convert import CONVERTERS, MOVIES
from planer.data.corpora import SPLITS
from planer.data.labelled import read_labelled
from planer.errors import UserError
from tests.unit.toy import ROOT

pytestmark = pytest.mark.slow
CONTENT = {"model/config.json": b"{}", "model/deep/weights.bin": b"123", "other.txt": b"no", "../../evil.json": b"[]"}
COPY = "import shutil, sys; shutil.copy(sys.argv[1], sys.argv[2])"


@dataclass(frozen=True)
class Local(Package):
    """A package whose client copies a local file, and fails without one."""

    file: str = ""

    def command(self, folder: Path) -> list[str]:
        if self.client == "nothing":
            return ["no-such-client-anywhere"]
        return [sys.executable, "-c", COPY, self.file, str(folder)] if self.file else [sys.executable, "-c", "1 / 0"]


def wheel(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in CONTENT.items():
            archive.writestr(name, content)
    return path


def tgz(path: Path, content: dict[str, bytes] = CONTENT) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, value in content.items():
            (entry := tarfile.TarInfo(name)).size = len(value)
            archive.addfile(entry, io.BytesIO(value))
    return path


def deb(path: Path) -> Path:
    root = path.parent / "root"
    for name in ("model/config.json", "model/deep/weights.bin", "other.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(CONTENT[name])
    (root / "DEBIAN").mkdir()
    lines = ["Package: made-up", "Version: 1", "Architecture: all", "Maintainer: nobody", "Description: none"]
    (root / "DEBIAN/control").write_text("\n".join(lines) + "\n")
    subprocess.run(["dpkg-deb", "--build", str(root), str(path)], check=True, capture_output=True)
    return path


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("PLANER_ASSETS", str(tmp_path / "home"))
    return tmp_path / "home"


def offer(monkeypatch, package: Package, becomes: dict[str, str] | None = None, sha256: str = "") -> None:
    """Set a table of one asset, ``thing``: config.json and weights.bin of the package."""
    asset = assets.Asset(package, ("model/*", "*.json"), sha256, 1, becomes or {})
    monkeypatch.setattr(assets, "table", lambda: {"thing": asset})


WRITERS = {"package.whl": wheel, "package.tar.gz": tgz, "package.tgz": tgz, "package.deb": deb}


@pytest.mark.parametrize("name", WRITERS)
def test_members_of_a_package_are_read_by_name(name, tmp_path):
    if name.endswith(".deb") and not shutil.which("dpkg-deb"):
        pytest.skip("there is no dpkg-deb")
    found = {member: read() for member, read in members(WRITERS[name](tmp_path / name))}
    assert {member: found[member] for member in CONTENT if ".." not in member} == {
        member: content for member, content in CONTENT.items() if ".." not in member
    }


def expected_digest(tmp_path: Path) -> str:
    """The digest of the three members that ``offer`` asks for, computed without planer."""
    folder = tmp_path / "members"
    folder.mkdir()
    for member in ("model/config.json", "model/deep/weights.bin", "../../evil.json"):
        (folder / Path(member).name).write_bytes(CONTENT[member])
    names = sorted(path.name for path in folder.iterdir())
    lines = subprocess.run(["sha256sum", *names], cwd=folder, capture_output=True, check=True).stdout
    return subprocess.run(["sha256sum"], input=lines, capture_output=True, check=True).stdout.decode().split()[0]


def test_an_asset_is_fetched_only_when_missing_or_damaged(tmp_path, home, monkeypatch):
    file, sha256 = wheel(tmp_path / "package.whl"), expected_digest(tmp_path)
    offer(monkeypatch, Local("pip", "made-up", "1", str(file)), sha256=sha256)
    lines: list[str] = []
    assets.fetch(say=lines.append)
    assert {path.name for path in (home / "thing").iterdir()} == {"config.json", "weights.bin", "evil.json"}
    assert {path.name for path in home.iterdir()} == {"thing"}, "folders in names of members are ignored"
    assert lines == ["1 of 1  thing: fetching made-up 1, 1 MB with pip"]

    offer(monkeypatch, Local("pip", "made-up", "1"), sha256=sha256)
    assets.fetch(["thing"], say=lines.append)
    assert lines[-1] == "1 of 1  thing: is there"

    (home / "thing" / "config.json").write_bytes(b"changed")
    offer(monkeypatch, Local("pip", "made-up", "1", str(file)), sha256=sha256)
    assets.fetch(say=lines.append)
    assert "fetching" in lines[-1] and (home / "thing" / "config.json").read_bytes() == b"{}"


@pytest.mark.parametrize(
    ("client", "make", "message"),
    [
        ("pip", wheel, "asset thing: package.whl does not hold the files of the table .sha256 [0-9a-f]{64}, expected"),
        ("nothing", wheel, "made-up 1 cannot be fetched with nothing: there is no no-such-client-anywhere; install it"),
        ("pip", None, "made-up 1 cannot be fetched with pip .ZeroDivisionError: division by zero.; try again"),
        ("pip", lambda path: path.write_bytes(b"PK no") and path, "package.whl is no readable archive"),
    ],
)
def test_a_failed_fetch_is_one_line_and_writes_nothing(client, make, message, tmp_path, home, monkeypatch):
    file = str(make(tmp_path / "package.whl")) if make else ""
    offer(monkeypatch, Local(client, "made-up", "1", file))
    with pytest.raises(UserError, match=message) as refused:
        assets.fetch(say=lambda line: None)
    assert "\n" not in str(refused.value) and not list(home.iterdir())


def test_an_unknown_asset_is_refused(home):
    with pytest.raises(UserError, match="asset 'nonsense' is unknown; allowed: minilm, gguf, "):
        assets.fetch(["minilm", "nonsense"])
    run = subprocess.run(
        [sys.executable, "-m", "planer.data.assets", "nonsense"], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 1 and run.stderr.startswith("planer: asset 'nonsense'") and run.stderr.count("\n") == 1


def test_the_table_names_known_clients_converters_and_checksums():
    targets = [target for asset in assets.table().values() for target in asset.becomes]
    assert len(targets) == len(set(targets)) and not set(targets) & set(assets.table())
    for name, asset in assets.table().items():
        assert asset.package.command(Path("."))[0], name
        assert re.fullmatch("[0-9a-f]{64}", asset.sha256) and set(asset.becomes.values()) <= set(CONVERTERS), name


def test_a_converted_folder_is_made_once(tmp_path, home, monkeypatch):
    file, sha256 = wheel(tmp_path / "package.whl"), expected_digest(tmp_path)
    offer(monkeypatch, Local("pip", "made-up", "1", str(file)), {"made": "count"}, sha256)
    calls: list[Path] = []

    def count(source: Path, folder: Path) -> None:
        calls.append(source)
        (folder / "result").write_text("done")

    monkeypatch.setitem(CONVERTERS, "count", count)
    for _ in range(2):
        assets.fetch(say=lambda line: None)
    assert calls == [home / "thing"] and (home / "made/result").read_text() == "done"


def test_tables_with_three_header_lines_become_labelled_sets(tmp_path):
    (folder := tmp_path / "news").mkdir()
    head = "Category\tText\nd\tstring\nclass\t\n"
    for split, count in (("train", 9), ("test", 4)):
        rows = "".join(f"{'ab'[i % 2]}\ttext {i}\twith a tab\n" for i in range(count))
        (tmp_path / f"news-{split}.tab").write_text(head + rows)
    CONVERTERS["labelled_table"](tmp_path, folder)
    examples = {split: read_labelled(folder / f"{split}.tsv") for split in ("train", "test")}
    assert {split: len(part) for split, part in examples.items()} == {"train": 9, "test": 4}
    assert examples["train"].inputs != sorted(examples["train"].inputs), "shuffled"
    for text, label in zip(examples["train"].inputs, examples["train"].labels, strict=True):
        assert re.fullmatch(r"text \d with a tab", text) and int(text[5]) % 2 == label


def test_scores_of_reviews_become_labels(tmp_path):
    (folder := tmp_path / "movies").mkdir()
    scores = [1.5, -0.25, 0.0] * 20
    lines = "".join(f"{i}\t{score}\tsnippet {i}, caf\u00e9\r\n" for i, score in enumerate(scores))
    tgz(tmp_path / "hutto_ICWSM_2014.tar.gz", {MOVIES: lines.encode()})
    CONVERTERS["movie_sentiment"](tmp_path, folder)
    parts = [read_labelled(folder / f"{split}.tsv", label_names=("negative", "positive")) for split in SPLITS]
    assert [len(part) for part in parts] == [32, 4, 4]
    for part in parts:
        for text, label in zip(part.inputs, part.labels, strict=True):
            assert label == (scores[int(re.search(r"\d+", text)[0])] > 0)


def test_html_pages_become_plain_text(tmp_path):
    (folder := tmp_path / "prose").mkdir()
    page = (
        "<html><head><title>T</title><style>p {}</style></head><body><h1>Head</h1><p>Some <b>bold</b>\nwords &amp; more"
    )
    (tmp_path / "a.html").write_text(page + "</p><script>no()</script><p>Second</p></body></html>")
    (tmp_path / "b.html").write_text("<p>Last</p>")
    CONVERTERS["essays"](tmp_path, folder)
    assert (folder / "prose.txt").read_text() == "Head\nSome bold words & more\nSecond\n\nLast\n"


def test_entries_of_a_dictionary_are_shuffled(tmp_path):
    (folder := tmp_path / "dictionary").mkdir()
    entries = [f"word {i}\n   meaning {i}\n".encode() for i in range(300)]
    starts = [sum(map(len, entries[:i])) for i in range(301)]
    digits = string.ascii_uppercase + string.ascii_lowercase + string.digits + "+/"

    def number(n: int) -> str:
        return (digits[n // 4096] + digits[n // 64 % 64] + digits[n % 64]).lstrip("A") or "A"

    index = [f"word {i}\t{number(starts[i])}\t{number(len(entry))}\n" for i, entry in enumerate(entries)]
    (tmp_path / "gcide.index").write_text("00-database-info\tA\tB\n" + "".join(index) + index[7])
    (tmp_path / "gcide.dict.dz").write_bytes(gzip.compress(b"".join(entries)))
    CONVERTERS["dictionary"](tmp_path, folder)
    found = (folder / "dictionary.txt").read_bytes()[:-1].split(b"\n\n")
    assert sorted(found) == sorted(entry.strip() for entry in entries) and found[:9] != sorted(found)[:9]


def test_compressed_pages_and_a_renamed_vocabulary(tmp_path):
    for name in ("pages", "vocabulary"):
        (tmp_path / name).mkdir()
    (tmp_path / "some.xml.bz2").write_bytes(bz2.compress(b"<mediawiki/>"))
    (tmp_path / "encoder.json").write_text("{}")
    (tmp_path / "vocab.bpe").write_text("#version")
    CONVERTERS["unpacked"](tmp_path, tmp_path / "pages")
    CONVERTERS["gpt2_vocabulary"](tmp_path, tmp_path / "vocabulary")
    assert (tmp_path / "pages/pages.xml").read_bytes() == b"<mediawiki/>"
    assert {path.name for path in (tmp_path / "vocabulary").iterdir()} == {"vocab.json", "merges.txt"}


def test_a_network_in_gguf_needs_the_asset_gguf(tmp_path):
    (tmp_path / "smollm2-gguf").mkdir()
    (tmp_path / "smollm2-gguf/a.gguf").touch()
    with pytest.raises(UserError, match="smollm2 is made with the asset gguf; fetch both: gguf smollm2-gguf"):
        CONVERTERS["gguf_network"](tmp_path / "smollm2-gguf", tmp_path / "smollm2")
