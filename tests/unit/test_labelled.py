"""Labelled examples in every format; a mistake names file, column and row."""

from __future__ import annotations

import csv
import gzip
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest
from PIL import Image

from planer.data.labelled import Columns, random_splits, read_labelled
from planer.data.user_files import data_files, images_digest
from planer.errors import UserError

TEXTS = ['he said "no", twice', "two\tparts", "line one\nline two", "café"]
SIMPLE = ["a plain text", "it's \"quoted", "a, comma", "café"]
STARS = ["good", "bad", "good", "fair"]
INFO = {"features": {"label": {"names": ["good", "fair", "bad", "never"], "_type": "ClassLabel"}, "text": {}}}


def write_csv(path: Path, columns: dict) -> Path:
    pd.DataFrame(columns).to_csv(path, index=False)
    return path


def write_tsv(path: Path, columns: dict) -> Path:
    pd.DataFrame(columns).to_csv(path, index=False, sep="\t", quoting=csv.QUOTE_NONE)
    return path


def write_jsonl(path: Path, columns: dict) -> Path:
    pd.DataFrame(columns).to_json(path, orient="records", lines=True)
    return path


def write_parquet(path: Path, columns: dict, info: dict | None = None) -> Path:
    metadata = {"huggingface": json.dumps({"info": info})} if info else None
    pyarrow.parquet.write_table(pyarrow.table(columns).replace_schema_metadata(metadata), path)
    return path


def write_saved(folder: Path, columns: dict, info: dict | None = None) -> Path:
    """As Dataset.save_to_disk does, in two files."""
    folder.mkdir()
    table, files = pyarrow.table(columns), ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    for name, part in zip(files, (table.slice(0, 1), table.slice(1)), strict=True):
        with pyarrow.ipc.new_stream(folder / name, table.schema) as stream:
            stream.write_table(part)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in files]}))
    (folder / "dataset_info.json").write_text(json.dumps(info or {"features": {}}))
    return folder


WRITERS = {
    "set.csv": write_csv,
    "set.tsv": write_tsv,
    "set.jsonl": write_jsonl,
    "set.parquet": write_parquet,
    "set": write_saved,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_examples(name, tmp_path):
    texts = SIMPLE if name == "set.tsv" else TEXTS
    examples = read_labelled(WRITERS[name](tmp_path / name, {"text": texts, "label": STARS, "more": [1, 2, 3, 4]}))
    assert examples.inputs == texts and len(examples) == 4
    assert examples.label_names == ("bad", "fair", "good")
    assert examples.labels.dtype == np.int64 and examples.labels.tolist() == [2, 0, 2, 1]


@pytest.mark.parametrize("name", WRITERS)
def test_pairs_and_other_names_of_columns(name, tmp_path):
    columns = {"premise": SIMPLE, "hypothesis": SIMPLE[::-1], "gold": [10, 9, 9, 2]}
    path = WRITERS[name](tmp_path / name, columns)
    examples = read_labelled(path, Columns("premise", "hypothesis", "gold"))
    assert examples.inputs == list(zip(SIMPLE, SIMPLE[::-1], strict=True))
    assert examples.label_names == ("2", "9", "10"), "numbers in numeric order"
    assert examples.labels.tolist() == [2, 1, 1, 0]


@pytest.mark.parametrize("name", WRITERS)
def test_ids_follow_the_labels_that_are_given(name, tmp_path):
    path = WRITERS[name](tmp_path / name, {"text": SIMPLE, "label": STARS})
    examples = read_labelled(path, label_names=("good", "bad", "never", "fair"))
    assert examples.labels.tolist() == [0, 1, 0, 3] and examples.label_names == ("good", "bad", "never", "fair")
    with pytest.raises(
        UserError, match=r"set.*, (line|row) \d: column 'label' has the unknown 'fair'; known: bad, good$"
    ):
        read_labelled(path, label_names=("bad", "good"))


@pytest.mark.parametrize(("name", "write"), [("set.parquet", write_parquet), ("set", write_saved)])
def test_labels_of_hugging_face_sets_have_their_names(name, write, tmp_path):
    columns = {"text": SIMPLE, "label": pyarrow.array([0, 2, 0, 1])}
    examples = read_labelled(write(tmp_path / name, columns, INFO))
    assert examples.label_names == ("good", "fair", "bad", "never") and examples.labels.tolist() == [0, 2, 0, 1]
    again = read_labelled(tmp_path / name, label_names=("never", "bad", "fair", "good"))
    assert again.labels.tolist() == [3, 1, 3, 2], "compared by name"


@pytest.mark.parametrize("label", [4, -1, None])
def test_an_id_without_a_name_is_refused(label, tmp_path):
    columns = {"text": SIMPLE, "label": pyarrow.array([0, 2, label, 1])}
    path = write_parquet(tmp_path / "set.parquet", columns, INFO)
    found = "empty" if label is None else label
    with pytest.raises(UserError, match=rf"set.parquet, row 3: column 'label' is {found}; .* ids 0 to 3"):
        read_labelled(path)


@pytest.mark.parametrize("name", WRITERS)
def test_a_missing_column_is_refused_with_the_existing_ones(name, tmp_path):
    path = WRITERS[name](tmp_path / name, {"text": SIMPLE, "stars": STARS})
    with pytest.raises(UserError, match=r"set.*there is no column 'label'; columns: text, stars"):
        read_labelled(path)


@pytest.mark.parametrize("name", WRITERS)
def test_an_empty_text_is_refused_with_column_and_row(name, tmp_path):
    path = WRITERS[name](tmp_path / name, {"text": [*SIMPLE[:2], None, SIMPLE[3]], "label": STARS})
    place = {"set.csv": "line 4", "set.tsv": "line 4", "set.jsonl": "line 3"}.get(name, "row 3")
    with pytest.raises(UserError, match=f"set.*, {place}: column 'text' is empty; fill it in, or remove the row"):
        read_labelled(path)


@pytest.mark.parametrize(
    ("labels", "found"), [([1, 0, -1, 1], "-1, which marks a missing label"), ([1.0, 0.0, 0.5, 1.0], "1.0")]
)
def test_an_invalid_label_is_refused(labels, found, tmp_path):
    path = write_parquet(tmp_path / "set.parquet", {"text": SIMPLE, "label": labels})
    with pytest.raises(UserError, match=rf"row \d: column 'label' is {found}; write text or a whole number from 0"):
        read_labelled(path)


FAULTS = {
    "no file": ("set.csv", None, "set.csv does not exist; name a file"),
    "another format": ("set.xls", b"x", "set.xls: unknown kind of file '.xls'; allowed: .csv, .tsv, .jsonl, .parquet"),
    "nothing": ("set.csv", b"", "set.csv: there is no column 'text'; columns: none"),
    "no rows": ("set.csv", b"text,label\n", "set.csv holds no rows"),
    "a long row": ("set.csv", b"text,label\na,b\nc,d,e\n", "set.csv, line 3: has 3 values, the first line names 2"),
    "an open quote": ("set.csv", b'text,label\n"a,b\n', "set.csv, line 2: unexpected end of data; correct the quotes"),
    "Latin-1": ("set.csv", b"text,label\ncaf\xe9,b\n", "set.csv cannot be read .*0xe9.*text in UTF-8"),
    "two columns of one name": (
        "set.csv",
        b"text,label,text\n",
        "set.csv: there are 2 columns 'text'; columns: text, la",
    ),
    "no label": ("set.tsv", b"text\tlabel\na\tb\nc\t\n", "set.tsv, line 3: column 'label' is empty"),
    "one label": ("set.tsv", b"text\tlabel\na\tb\nc\tb\n", "every row has the label 'b'; a classification needs two"),
    "no JSON": ("set.jsonl", b'{"text": "a", "label": 1}\n{"text"', r"set.jsonl, line 2: no valid JSON \("),
    "no object": ("set.jsonl", b"[1]\n", "set.jsonl, line 1: no object; write"),
    "a text that is a number": ("set.jsonl", b'{"text": 3, "label": 1}\n', "line 1: column 'text' is 3, no text"),
    "no Parquet": ("set.parquet", b"PAR1 no", r"set.parquet is no readable Parquet file \("),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_invalid_file_is_one_line(fault, tmp_path):
    name, content, message = FAULTS[fault]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as refused:
        read_labelled(tmp_path / name)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("damage", ["state.json", "dataset_info.json", "data-00001-of-00002.arrow"])
def test_a_damaged_saved_set_is_one_line(damage, tmp_path):
    folder = write_saved(tmp_path / "set", {"text": SIMPLE, "label": STARS})
    (folder / damage).write_bytes((folder / damage).read_bytes()[:-40])
    with pytest.raises(UserError, match=r"set is no readable saved data set \(.*\); save it again") as refused:
        read_labelled(folder)
    assert "\n" not in str(refused.value)


def test_a_table_with_wrong_offsets_is_refused_before_it_is_read(tmp_path):
    """Reading it would crash the process."""
    offsets = np.array([0, 10**6, 2], np.int32).tobytes()
    texts = pyarrow.Array.from_buffers(
        pyarrow.string(), 2, [None, pyarrow.py_buffer(offsets), pyarrow.py_buffer(b"ab")]
    )
    write_saved(tmp_path / "set", {"text": texts, "label": ["a", "b"]})
    with pytest.raises(UserError, match=r"set is no readable saved data set \("):
        read_labelled(tmp_path / "set")


def pictures() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (5, 4, channels), np.uint8) for channels in (3, 1, 3)]


def write_image(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.squeeze()).save(path)


def test_a_folder_of_images_has_one_label_per_folder(tmp_path):
    names = ["cat/b.png", "bird/z.PNG", "cat/a.bmp"]
    for name, pixels in zip(names, pictures(), strict=True):
        write_image(tmp_path / name, pixels)
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    examples = read_labelled(tmp_path)
    assert examples.label_names == ("bird", "cat") and examples.labels.tolist() == [0, 1, 1]
    for image, pixels in zip(examples.inputs, [pictures()[i] for i in (1, 2, 0)], strict=True):
        assert np.array_equal(image, pixels)
    assert np.array_equal(examples.take(np.array([2])).inputs[0], pictures()[0])


def test_an_unreadable_image_is_refused_by_name(tmp_path):
    for name, pixels in zip(["cat/a.png", "dog/b.png", "dog/c.png"], pictures(), strict=True):
        write_image(tmp_path / name, pixels)
    whole = (tmp_path / "dog/c.png").read_bytes()
    (tmp_path / "dog/c.png").write_bytes(whole[:-30])
    examples = read_labelled(tmp_path)
    with pytest.raises(UserError, match=rf"{tmp_path}, dog/c.png: no readable image \(.*\); replace it"):
        examples.inputs[2]
    (tmp_path / "dog/c.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="dog/c.png: no readable image"):
        read_labelled(tmp_path)
    for file in (tmp_path / "dog").iterdir():
        file.unlink()
    with pytest.raises(UserError, match="dog holds no image; allowed: .bmp"):
        read_labelled(tmp_path)


@pytest.mark.parametrize(("name", "write"), [("set.parquet", write_parquet), ("set", write_saved)])
def test_images_in_a_table(name, write, tmp_path):
    for i, pixels in enumerate(pictures()):
        write_image(tmp_path / f"{i}.png", pixels)
    given = [{"bytes": (tmp_path / f"{i}.png").read_bytes(), "path": None} for i in range(2)]
    given.append({"bytes": None, "path": str(tmp_path / "2.png")})
    path = write(tmp_path / name, {"image": given, "label": [0, 2, 1]}, INFO)
    examples = read_labelled(path, Columns("image"))
    assert all(np.array_equal(image, pixels) for image, pixels in zip(examples.inputs, pictures(), strict=True))
    assert examples.labels.tolist() == [0, 2, 1]
    write((tmp_path / "again").with_suffix(path.suffix), {"image": [*given[:2], None], "label": [0, 2, 1]}, INFO)
    with pytest.raises(UserError, match="row 3: no readable image"):
        read_labelled((tmp_path / "again").with_suffix(path.suffix), Columns("image"))


def write_idx(path: Path, values: np.ndarray) -> None:
    head = bytes((0, 0, 8, values.ndim)) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    content = head + values.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_idx_files_of_mnist(ending, tmp_path):
    images, labels = np.random.default_rng(0).integers(0, 256, (12, 5, 4)), np.array([*range(10), 3, 1])
    write_idx(tmp_path / f"t10k-images-idx3-ubyte{ending}", images)
    write_idx(tmp_path / f"t10k-labels-idx1-ubyte{ending}", labels)
    examples = read_labelled(tmp_path / f"t10k-images-idx3-ubyte{ending}")
    assert np.array_equal(examples.inputs, images[..., None]) and examples.inputs.dtype == np.uint8
    assert np.array_equal(examples.labels, labels) and examples.label_names == tuple("0123456789")
    assert np.array_equal(examples.take(np.array([3, 1])).inputs, images[[3, 1], ..., None])


IDX_FAULTS = {
    "cut": (lambda c: c[:-3], "holds 253 bytes, its sizes 12 x 5 x 4 ask for 256; copy it again"),
    "no header": (lambda c: c[:6], r"holds 6 bytes, its sizes"),
    "another kind": (
        lambda c: b"\x00\x00\x0d\x03" + c[4:],
        "is no IDX file of bytes with 3 axes: it begins with 0x00000d03",
    ),
}


@pytest.mark.parametrize("fault", IDX_FAULTS)
def test_damaged_idx_files_are_refused(fault, tmp_path):
    change, message = IDX_FAULTS[fault]
    write_idx(path := tmp_path / "train-images-idx3-ubyte", np.zeros((12, 5, 4)))
    with pytest.raises(UserError, match="there is no train-labels-idx1-ubyte beside it"):
        read_labelled(path)
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.arange(11))
    with pytest.raises(UserError, match="holds 12 images, train-labels-idx1-ubyte 11 labels"):
        read_labelled(path)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(UserError, match=message):
        read_labelled(path)


def test_a_folder_of_several_splits_is_refused(tmp_path):
    (tmp_path / "dataset_dict.json").touch()
    with pytest.raises(UserError, match="holds several splits; name one of them, such as .*train"):
        read_labelled(tmp_path)


def test_random_splits_have_every_example_once_and_repeat(tmp_path):
    labels = [str(i % 2) for i in range(40)]
    write_csv(tmp_path / "set.csv", {"text": [f"text {i}" for i in range(40)], "label": labels})
    examples = read_labelled(tmp_path / "set.csv")
    parts = random_splits(examples, {"valid": 0.1, "test": 0.25}, 3)
    assert {split: len(part) for split, part in parts.items()} == {"train": 26, "valid": 4, "test": 10}
    together = [text for part in parts.values() for text in part.inputs]
    assert sorted(together) == sorted(examples.inputs) and together != examples.inputs
    for part in parts.values():
        assert [int(text.split()[1]) % 2 for text in part.inputs] == part.labels.tolist()
    again, other = random_splits(examples, {"test": 0.25}, 3), random_splits(examples, {"test": 0.25}, 4)
    assert again["test"].inputs == random_splits(examples, {"test": 0.25}, 3)["test"].inputs != other["test"].inputs
    with pytest.raises(UserError, match="40 examples are too few for a split valid"):
        random_splits(examples, {"valid": 0.01}, 0)


def test_all_files_that_are_read_are_inputs(tmp_path):
    """Of a file the file, of IDX images the labels too, of a saved data set what it is made of."""
    names = ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz", "train.csv")
    for name in names:
        (tmp_path / name).touch()
    images, labels, table = (tmp_path / name for name in names)
    assert data_files(table) == [table] and data_files(images) == [images, labels]
    saved = write_saved(tmp_path / "saved", {"text": SIMPLE, "label": STARS})
    found = data_files(saved)
    assert [path.name for path in found] == [
        "data-00000-of-00002.arrow",
        "data-00001-of-00002.arrow",
        "dataset_info.json",
        "state.json",
    ]
    (saved / "cache-0123456789abcdef.arrow").touch()
    assert data_files(saved) == found, "what the package datasets keeps there is not read"
    (tmp_path / "folder").mkdir()
    assert not data_files(tmp_path / "folder") and not data_files(tmp_path / "missing")
    assert not data_files(tmp_path / ("a" * 300)) and not data_files(Path())


def test_a_digest_follows_the_images_of_a_folder(tmp_path):
    """Their names, sizes and dates, but nothing that is not read."""
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "1.png").write_bytes(b"12")
    image, digests = tmp_path / "dog/1.png", [images_digest(tmp_path)]
    (tmp_path / "dog/notes.txt").touch()
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache/1.png").touch()
    assert images_digest(tmp_path) == digests[0]
    os.utime(image, (1, 1))
    digests.append(images_digest(tmp_path))
    image.write_bytes(b"123")
    os.utime(image, (1, 1))
    digests.append(images_digest(tmp_path))
    image.rename(image.with_name("2.png"))
    digests.append(images_digest(tmp_path))
    (tmp_path / "cat/2.JPG").touch()
    digests.append(images_digest(tmp_path))
    assert len(set(digests)) == len(digests)
    assert images_digest(tmp_path / "missing") == images_digest(tmp_path / "dog/2.png"), "a job refuses them"
