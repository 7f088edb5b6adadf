"""From a user's texts, tables and images to the tensors of a task (task_files.py)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from planer.config.paths import resolve
from planer.config.pretrained import TaskConfig
from planer.config.text import chunks
from planer.data.image_pixels import image_facts, image_tensors
from planer.data.labelled import random_splits, read_labelled
from planer.data.labelled.examples import Columns, LabelledSet
from planer.data.task_files import MULTIPLE, SPLITS, TaskFacts, write_task
from planer.errors import UserError
from planer.files import one_line
from planer.parsing import show
from planer.pretrained.folder import CLASSES, Folder
from planer.pretrained.load import load_config, load_tokenizer, padding_id


def prepare_task(config: TaskConfig, network: Folder, folder: str | Path, seed: int) -> TaskFacts:
    """Read the task's data, turn it into what the network reads, and write it into a folder; return its facts.

    seed: of the samples that are taken from train for other splits.
    Raises UserError, one line, for data that cannot be read or does not fit the network.
    """
    if config.kind in ("text", "masked_tokens"):
        facts, splits = _text(config, network)
    else:
        examples = _labelled(config, network, seed)
        if config.kind == "labelled_images":
            facts = image_facts(network, config.headline, examples["train"].label_names)
            splits = {name: image_tensors(network, part) for name, part in examples.items()}
        else:
            facts, splits = _labelled_text(config, network, examples)
    counts = {name: {key: list(tensor.shape) for key, tensor in part.items()} for name, part in splits.items()}
    write_task(folder, facts, splits, {"shapes": counts})
    return facts


def _text(config: TaskConfig, network: Folder) -> tuple[TaskFacts, dict[str, dict[str, Tensor]]]:
    _check_positions(network, "task.block_size", config.block_size)
    tokenizer, splits = load_tokenizer(network), {}
    facts = TaskFacts(
        config.kind, config.headline, block_size=config.block_size, **_symbols(config, network, tokenizer)
    )
    for name, text in _texts(config).items():
        encoded = (tokenizer(chunk, add_special_tokens=False).input_ids for chunk in chunks(text))
        tokens = np.concatenate([np.array([], np.int32), *(np.array(ids, np.int32) for ids in encoded)])
        if len(tokens) <= config.block_size:
            problem = f"the split {name} has {len(tokens):,} tokens, a block {config.block_size:,}"
            raise UserError(f"task: {problem}; give more text, or lower task.block_size")
        splits[name] = {"tokens": torch.from_numpy(tokens)}
    return facts, splits


def _symbols(config: TaskConfig, network: Folder, tokenizer) -> dict:
    """Facts about the tokenizer's symbols that the task needs.  Raises UserError when it lacks one."""
    if config.kind == "text":
        return {}
    names = {"first_id": "cls_token", "last_id": "sep_token", "mask_id": "mask_token"}
    found = {key: getattr(tokenizer, f"{name}_id") for key, name in names.items()}
    if missing := [names[key] for key, symbol in found.items() if symbol is None]:
        raise UserError(f"task.kind: masked_tokens needs a {missing[0]}, which the tokenizer of {network.path} lacks")
    return found | {"special_ids": tuple(tokenizer.all_special_ids), "vocab_size": len(tokenizer)}


def _texts(config: TaskConfig) -> dict[str, str]:
    """The three splits; valid and test are the end of train where they have no file."""
    texts = {name: _read_text(f"task.{name}", getattr(config, name)) for name in SPLITS if getattr(config, name)}
    length = len(texts["train"])
    for name in ("test", "valid"):
        if name not in texts:
            start = _boundary(texts["train"], len(texts["train"]) - round(getattr(config.split, name) * length))
            texts["train"], texts[name] = texts["train"][:start], texts["train"][start:]
    return {name: texts[name] for name in SPLITS}


def _boundary(text: str, position: int) -> int:
    """The start of a line behind a position; of a word where the text has no further line, as a text of one line."""
    starts = (text.find(mark, position) + 1 for mark in "\n ")
    return next((start for start in starts if 0 < start < len(text)), position)


def _read_text(key: str, path: str) -> str:
    try:
        return resolve(path).read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{key}: {resolve(path)} cannot be read ({one_line(error)}); name a text in UTF-8") from error


def _labelled(config: TaskConfig, network: Folder, seed: int) -> dict[str, LabelledSet]:
    columns = Columns(config.text_column, config.text_pair_column, config.label_column)
    train = read_labelled(resolve(config.train), columns, trained=_labels(network))
    shares = {name: getattr(config.split, name) for name in ("valid", "test") if not getattr(config, name)}
    found = random_splits(train, shares, seed) if shares else {"train": train}
    for name in ("valid", "test"):
        if name not in found:
            found[name] = read_labelled(resolve(getattr(config, name)), columns, train.label_names)
    _check_inputs(config, found)
    return {name: found[name] for name in SPLITS}


def _check_inputs(config: TaskConfig, examples: dict[str, LabelledSet]) -> None:
    """Raise UserError for a file of images where the task reads texts, or of texts where it reads images."""
    for name, part in examples.items():
        image = isinstance(part.inputs[0], np.ndarray)
        if image == (config.kind == "labelled_images"):
            continue
        found, kind, wanted = ("images", "labelled_images", "texts") if image else ("texts", "labelled_text", "images")
        key = name if getattr(config, name) else "train"
        problem = f"{resolve(getattr(config, key))} holds {found}, but task.kind is {config.kind}"
        remedy = f"set task.kind: {kind}, or " if key == "train" else ""
        raise UserError(f"task.{key}: {problem}; {remedy}name data or a text_column with {wanted}")


def _labels(network: Folder) -> tuple[str, ...] | None:
    """Names of labels of the folder's head, LABEL_0 and so on by default; None where it has no such head."""
    if not any(str(name).endswith(CLASSES[network.head]) for name in network.config.get("architectures") or ()):
        return None
    names = load_config(network).id2label
    return tuple(str(names[key]) for key in sorted(names))


def _labelled_text(
    config: TaskConfig, network: Folder, examples: dict[str, LabelledSet]
) -> tuple[TaskFacts, dict[str, dict[str, Tensor]]]:
    _check_positions(network, "task.max_length", config.max_length, MULTIPLE)
    tokenizer = load_tokenizer(network)
    label_names = examples["train"].label_names
    facts = TaskFacts("labelled_text", config.headline, label_names, pad_id=padding_id(tokenizer))
    pairs, splits = bool(config.text_pair_column), {}
    for name, part in examples.items():
        texts = zip(*part.inputs, strict=True) if pairs else (part.inputs,)
        encoded = tokenizer(*map(list, texts), truncation=True, max_length=config.max_length)
        lengths = [len(ids) for ids in encoded.input_ids]
        if not min(lengths):
            raise UserError(f"task: a text of the split {name} has no token of the tokenizer; remove it")
        splits[name] = {
            "ids": torch.tensor(list(_joined(encoded.input_ids)), dtype=torch.int32),
            "starts": torch.tensor([0, *np.cumsum(lengths).tolist()]),
            "labels": torch.from_numpy(part.labels),
        }
        if pairs and "token_type_ids" in encoded:
            splits[name]["types"] = torch.tensor(list(_joined(encoded.token_type_ids)), dtype=torch.uint8)
    return facts, splits


def _joined(lists: list[list[int]]) -> Iterator[int]:
    return (value for part in lists for value in part)


def _check_positions(network: Folder, key: str, length: int, multiple: int = 1) -> None:
    """Raise UserError when samples, filled up to a multiple, are longer than the network's positions."""
    most = getattr(load_config(network), "max_position_embeddings", None)
    filled = -(-length // multiple) * multiple
    if most and filled > most:
        batches = f", which batches fill up to {show(filled)}" if filled > length else ""
        advice = f"lower it to {most - most % multiple}"
        raise UserError(f"{key} is {show(length)}{batches}, but {network.path} has {most:,} positions; {advice}")
