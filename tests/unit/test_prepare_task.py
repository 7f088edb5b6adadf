"""Users' files become tensors, compared with the tokenizer and image processor of transformers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from planer.config.pretrained import SplitConfig, TaskConfig
from planer.data.prepare_task import prepare_task
from planer.data.task_files import read_task
from planer.errors import UserError
from planer.pretrained.folder import check_folder
from planer.pretrained.load import load_image_processor, load_tokenizer

transformers = pytest.importorskip("transformers", reason="the package transformers is not installed")

from tests.unit.tiny_pretrained import save  # noqa: E402

HEADS = {"gpt2": "causal_lm", "bert": "sequence_classification", "vit": "image_classification"}
TEXTS = ["the quick brown fox", "jumps over the lazy dog in an other text", "fox", "dog dog dog the dog"] * 5


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("networks")
    for family in HEADS:
        save(family, root / family)
    return {family: check_folder(root / family, head) for family, head in HEADS.items()}


def config(kind: str, **changes) -> TaskConfig:
    given = TaskConfig(kind, "train", "", "", "text", "", "label", 8, 8, SplitConfig(0.2, 0.2), "auto")
    return dataclasses.replace(given, **changes)


def write_table(path: Path, texts=TEXTS, columns: str = "text,label") -> str:
    rows = [f"{text},{'fox' if 'fox' in text else 'none'}" for text in texts]
    path.write_text("\n".join([columns, *rows]))
    return str(path)


def test_a_text_is_tokenized_and_split_in_order(folders, tmp_path):
    text = "\n".join(TEXTS * 4)
    (tmp_path / "my.txt").write_text(text)
    prepare_task(config("text", train=str(tmp_path / "my.txt")), folders["gpt2"], tmp_path / "out", 0)
    facts, splits = read_task(tmp_path / "out", ("train", "valid", "test"))
    joined = torch.cat([splits[name]["tokens"] for name in ("train", "valid", "test")])
    tokenizer = load_tokenizer(folders["gpt2"])
    assert joined.tolist() == tokenizer(text, add_special_tokens=False).input_ids
    assert (facts.block_size, facts.metric) == (8, "nll")
    assert len(splits["valid"]["tokens"]) == pytest.approx(len(joined) / 5, rel=0.3)


def test_a_text_of_one_line_is_split_between_words(folders, tmp_path):
    (tmp_path / "my.txt").write_text(" ".join(TEXTS * 4) + "\n")
    prepare_task(config("text", train=str(tmp_path / "my.txt")), folders["gpt2"], tmp_path / "out", 0)
    _, splits = read_task(tmp_path / "out", ("train", "valid", "test"))
    total = sum(len(part["tokens"]) for part in splits.values())
    for name, share in (("train", 0.6), ("valid", 0.2), ("test", 0.2)):
        assert len(splits[name]["tokens"]) == pytest.approx(share * total, rel=0.1)


def test_special_symbols_of_masked_tokens_are_those_of_the_tokenizer(folders, tmp_path):
    (tmp_path / "my.txt").write_text("\n".join(TEXTS * 4))
    given = config("masked_tokens", train=str(tmp_path / "my.txt"))
    prepare_task(given, folders["bert"], tmp_path / "out", 0)
    facts, splits = read_task(tmp_path / "out", ("train",))
    tokenizer = load_tokenizer(folders["bert"])
    symbols = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id
    assert (facts.first_id, facts.last_id, facts.mask_id) == symbols and set(symbols) < set(facts.special_ids)
    assert facts.vocab_size == len(tokenizer) and splits["train"]["tokens"].dtype == torch.int32
    save("bert", tmp_path / "net")
    names = json.loads((tmp_path / "net/tokenizer_config.json").read_text())
    (tmp_path / "net/tokenizer_config.json").write_text(
        json.dumps({k: v for k, v in names.items() if k != "mask_token"})
    )
    with pytest.raises(UserError, match="masked_tokens needs a mask_token, which the tokenizer of .*net lacks"):
        prepare_task(given, check_folder(tmp_path / "net", "masked_lm"), tmp_path / "other", 0)


def test_labelled_texts_equal_the_truncated_ids_of_the_tokenizer(folders, tmp_path):
    table = write_table(tmp_path / "all.csv")
    task = config("labelled_text", train=table, valid=table, test=table)
    prepare_task(task, folders["bert"], tmp_path / "out", 0)
    facts, splits = read_task(tmp_path / "out", ("test",))
    data, tokenizer = splits["test"], load_tokenizer(folders["bert"])
    assert facts.label_names == ("fox", "none") and facts.pad_id == tokenizer.pad_token_id
    for i, text in enumerate(TEXTS):
        ids = data["ids"][data["starts"][i] : data["starts"][i + 1]].tolist()
        assert ids == tokenizer(text, truncation=True, max_length=8).input_ids
        assert facts.label_names[data["labels"][i]] == ("fox" if "fox" in text else "none")


def test_splits_without_a_file_are_taken_from_train(folders, tmp_path):
    prepare_task(config("labelled_text", train=write_table(tmp_path / "all.csv")), folders["bert"], tmp_path / "out", 5)
    _, splits = read_task(tmp_path / "out", ("train", "valid", "test"))
    assert [len(splits[name]["labels"]) for name in ("train", "valid", "test")] == [12, 4, 4]


def test_images_equal_those_of_the_image_processor(folders, tmp_path):
    """The images have another size than the network; batches normalise them."""
    generator = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / "train" / label).mkdir(parents=True)
        for number in range(5):
            pixels = generator.integers(0, 256, (11, 13, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "train" / label / f"{number}.png")
    path = str(tmp_path / "train")
    prepare_task(config("labelled_images", train=path, valid=path, test=path), folders["vit"], tmp_path / "out", 0)
    facts, splits = read_task(tmp_path / "out", ("test",))
    first = Image.open(tmp_path / "train/cat/0.png")
    theirs = load_image_processor(folders["vit"])(first, return_tensors="pt")["pixel_values"][0]
    mean, std = (torch.tensor(values)[:, None, None] for values in (facts.mean, facts.std))
    ours = (splits["test"]["pixels"][0] / 255 - mean) / std
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert facts.tokens_per_image == 5 and facts.label_names == ("cat", "dog")


@pytest.mark.parametrize(
    ("kind", "family", "changes", "message"),
    [
        ("text", "gpt2", {"train": "nowhere.txt"}, "task.train: .*nowhere.txt cannot be read .*name a text in UTF-8"),
        ("text", "gpt2", {"block_size": 33}, "task.block_size is 33, but .* has 32 positions; lower it to 32$"),
        (
            "labelled_text",
            "bert",
            {"max_length": 513},
            "max_length is 513, which batches fill up to 520, but .* has 512 positions; lower it to 512$",
        ),
        ("labelled_text", "bert", {"label_column": "topic"}, "no column 'topic'; columns: text, label"),
        ("labelled_text", "bert", {"test": "other.csv"}, "line 2: column 'label' has the unknown 'cat'; known: fox"),
        ("labelled_text", "bert", {"split": SplitConfig(0.01, 0.2)}, "too few for a split valid"),
        ("text", "gpt2", {"train": "short.txt"}, "the split .* tokens, a block 8; give more text"),
    ],
)
def test_a_wrong_task_is_refused(folders, tmp_path, monkeypatch, kind, family, changes, message):
    monkeypatch.chdir(tmp_path)
    Path("my.txt").write_text("\n".join(TEXTS))
    Path("short.txt").write_text("fox\n" * 8)
    Path("other.csv").write_text("text,label\nfox,cat\n")
    given = {"train": "my.txt" if kind == "text" else write_table(Path("all.csv"))} | changes
    with pytest.raises(UserError, match=message) as refused:
        prepare_task(config(kind, **given), folders[family], tmp_path / "out", 0)
    assert "\n" not in str(refused.value) and not Path("out").exists()


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A folder with the same labels in a table of paths, a folder of images, IDX files and a Parquet file."""
    root = tmp_path_factory.mktemp("mixed")
    for label in ("0", "1"):
        (root / "images" / label).mkdir(parents=True)
        Image.new("L", (8, 8), int(label)).save(root / "images" / label / "a.png")
    paths = [f"images/{label}/a.png" for label in "01"]
    (root / "paths.csv").write_text("text,label\n" + "".join(f"{path},{path[7]}\n" for path in paths))
    sizes = (2).to_bytes(4, "big"), (8).to_bytes(4, "big") * 2
    (root / "a-images-idx3-ubyte").write_bytes(bytes((0, 0, 8, 3)) + b"".join(sizes) + bytes(128))
    (root / "a-labels-idx1-ubyte").write_bytes(bytes((0, 0, 8, 1)) + sizes[0] + bytes((0, 1)))
    columns = {"text": [{"bytes": (root / path).read_bytes(), "path": None} for path in paths], "label": [0, 1]}
    pyarrow.parquet.write_table(pyarrow.table(columns), root / "images.parquet")
    return root


@pytest.mark.parametrize(
    ("family", "split", "name"),
    [
        ("vit", "train", "paths.csv"),
        ("vit", "valid", "paths.csv"),
        ("bert", "train", "images"),
        ("bert", "train", "a-images-idx3-ubyte"),
        ("bert", "test", "images.parquet"),
    ],
)
def test_data_of_another_kind_than_the_task_are_refused(folders, mixed, tmp_path, family, split, name):
    kinds = {"texts": "labelled_text", "images": "labelled_images"}
    found, wanted = ("texts", "images") if family == "vit" else ("images", "texts")
    fitting = mixed / ("images" if family == "vit" else "paths.csv")
    files = dict.fromkeys(("train", "valid", "test"), str(fitting)) | {split: str(mixed / name)}
    with pytest.raises(UserError) as refused:
        prepare_task(config(kinds[wanted], **files), folders[family], tmp_path / "out", 0)
    problem = f"task.{split}: {mixed / name} holds {found}, but task.kind is {kinds[wanted]}"
    remedy = f"set task.kind: {kinds[found]}, or " if split == "train" else ""
    assert str(refused.value) == f"{problem}; {remedy}name data or a text_column with {wanted}"


def test_folders_of_images_named_otherwise_are_numbered_by_name(tmp_path, caplog):
    """The network has names, as those of ImageNet; folders are named as in the archive."""
    save("vit", tmp_path / "net")
    file = tmp_path / "net/config.json"
    named = {"id2label": {0: "tench", 1: "shark", 2: "hen"}, "label2id": {"tench": 0, "shark": 1, "hen": 2}}
    file.write_text(json.dumps(json.loads(file.read_text()) | named))
    network = check_folder(tmp_path / "net", "image_classification")
    for label in ("n03", "n01", "n02"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "images" / label / f"{number}.png")
    path = str(tmp_path / "images")
    task = config("labelled_images", train=path, valid=path, test=path)
    with caplog.at_level("INFO", logger="planer"):
        prepare_task(task, network, tmp_path / "out", 0)
    facts, splits = read_task(tmp_path / "out", ("test",))
    assert facts.label_names == ("n01", "n02", "n03") and splits["test"]["labels"].tolist() == [0, 0, 1, 1, 2, 2]
    assert caplog.messages == [f"{path}: the labels n01, n02, n03 are the network's tench, shark, hen, in this order"]
    (tmp_path / "images/n03").rename(tmp_path / "images/hen")
    with pytest.raises(UserError, match="unknown 'n01'; known: tench, shark, hen"):
        prepare_task(task, network, tmp_path / "out", 0)


def edit(folder: Path, **changes) -> None:
    """Change keys of config.json; None removes one."""
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def test_texts_are_never_filled_up_beyond_the_positions(tmp_path):
    """Batches are filled up to a multiple of 8."""
    save("bert", tmp_path / "net")
    edit(tmp_path / "net", max_position_embeddings=12)
    network, table = check_folder(tmp_path / "net", "sequence_classification"), write_table(tmp_path / "a.csv")
    message = "task.max_length is 12, which batches fill up to 16, but .* has 12 positions; lower it to 8$"
    with pytest.raises(UserError, match=message):
        prepare_task(config("labelled_text", train=table, max_length=12), network, tmp_path / "out", 0)
    prepare_task(config("labelled_text", train=table, max_length=8), network, tmp_path / "out", 0)


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        (
            {"architectures": ["BertForSequenceClassification"]},
            ["the labels fox, none are the network's LABEL_0, LABEL_1"],
        ),
        (
            {
                "architectures": ["BertForSequenceClassification"],
                "id2label": {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"},
            },
            ["has 2 labels, the network's head 3; a new head takes its place"],
        ),
        ({"architectures": ["BertForTokenClassification"], "id2label": {"0": "O", "1": "B"}}, []),
        ({"architectures": ["BertForMaskedLM"]}, []),
    ],
)
def test_what_becomes_of_the_networks_labels_is_logged(changes, lines, tmp_path, caplog):
    """A head of two labels without names has none in config.json.  Tags of tokens are no labels of texts."""
    save("bert", tmp_path / "net")
    edit(tmp_path / "net", **changes)
    network = check_folder(tmp_path / "net", "sequence_classification")
    with caplog.at_level("INFO", logger="planer"):
        facts = prepare_task(
            config("labelled_text", train=write_table(tmp_path / "a.csv")), network, tmp_path / "out", 0
        )
    assert facts.label_names == ("fox", "none")
    assert len(caplog.messages) == len(lines) and all(map(str.__contains__, caplog.messages, lines))


def write_images(folder: Path) -> str:
    for label in ("cat", "dog"):
        (folder / label).mkdir(parents=True)
        for number in range(5):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / label / f"{number}.png")
    return str(folder)


def test_sizes_that_config_json_leaves_out_are_those_of_transformers(tmp_path):
    save("vit", tmp_path / "net")
    edit(tmp_path / "net", image_size=16, patch_size=None, num_channels=None)
    network = check_folder(tmp_path / "net", "image_classification")
    task = config("labelled_images", train=write_images(tmp_path / "images"))
    processor = json.loads((tmp_path / "net/preprocessor_config.json").read_text())
    processor["size"] = {"height": 16, "width": 16}
    (tmp_path / "net/preprocessor_config.json").write_text(json.dumps(processor))
    assert prepare_task(task, network, tmp_path / "out", 0).tokens_per_image == 2
    assert read_task(tmp_path / "out", ["test"])[1]["test"]["pixels"].shape == (2, 3, 16, 16)


def test_images_that_are_no_squares_are_refused(tmp_path):
    save("vit", tmp_path / "net")
    edit(tmp_path / "net", image_size=[8, 8])
    network = check_folder(tmp_path / "net", "image_classification")
    task = config("labelled_images", train=write_images(tmp_path / "images"))
    with pytest.raises(UserError, match=r"net has image_size \[8, 8\]; only whole numbers are read$"):
        prepare_task(task, network, tmp_path / "out", 0)


def test_labels_of_a_trained_head_are_kept(tmp_path):
    """In the order of the folder, which is not alphabetical; other labels are refused."""
    model = transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=96,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            id2label={0: "none", 1: "fox"},
            label2id={"none": 0, "fox": 1},
        )
    )
    save("bert", tmp_path / "net")
    model.save_pretrained(tmp_path / "net")
    network = check_folder(tmp_path / "net", "sequence_classification")
    prepare_task(config("labelled_text", train=write_table(tmp_path / "a.csv")), network, tmp_path / "out", 0)
    assert read_task(tmp_path / "out", ())[0].label_names == ("none", "fox")
    (tmp_path / "b.csv").write_text("text,label\nfox,cat\ndog,none\n")
    with pytest.raises(UserError, match="unknown 'cat'; known: none, fox"):
        prepare_task(config("labelled_text", train=str(tmp_path / "b.csv")), network, tmp_path / "out", 0)
