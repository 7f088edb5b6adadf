"""The network that an experiment starts from: checked once, and described by a manifest that later jobs read.

A folder of the user's is left where it is.  A network of random weights is written beside the manifest.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from planer.config.paths import resolve
from planer.config.pretrained import PretrainedConfig
from planer.errors import Damaged, UserError
from planer.files import file_sha256, one_line, read_json, write_json, writing
from planer.parsing import show
from planer.pretrained.adapters import adapter_for, adapters
from planer.pretrained.folder import PROCESSORS, SIDE_FILES, WEIGHTS, Folder, check_folder
from planer.pretrained.load import (
    HEADS,
    load_image_processor,
    load_model,
    load_tokenizer,
    padding_id,
    quiet_transformers,
)
from planer.tensors import read_tensors, write_tensors

if TYPE_CHECKING:
    import transformers

CONFIG_SHA256 = "config_sha256"
"""Key of the sha256 of config.json in the metadata of a stage's weights."""


def prepare_model(config: PretrainedConfig, head: str, manifest: str | Path, seed: int) -> dict:
    """Load the network and its tokenizer or image processor once, and write the manifest, which is returned.

    seed: of random weights.  Raises UserError, one line, for a folder or a configuration that cannot be used.
    """
    manifest = Path(manifest)
    if config.config:
        path = manifest.with_name("network")
        _write_random(config, head, path, seed)
    else:
        path = resolve(config.folder)
    folder = check_folder(path, head)
    model = load_model(folder)
    (load_image_processor if head == "image_classification" else load_tokenizer)(folder)
    adapter = adapter_for(model)
    files = sorted(file for file in folder.path.iterdir() if file.name in (*SIDE_FILES, "config.json"))
    content = {
        "folder": str(folder.path),
        "head": head,
        "attention": config.attention,
        "model_type": folder.config["model_type"],
        "params": sum(weight.numel() for weight in model.parameters()),
        "feed_forward_layers": [name for name, _ in adapter.find(model, adapter.layers)],
        "files_sha256": {file.name: file_sha256(file) for file in (*files, *folder.weights)},
    }
    write_json(manifest, content)
    return content


def prepared_folder(manifest: str | Path) -> Folder:
    """The folder that a manifest describes.  Raises UserError when one of its files has changed since."""
    content = _read(manifest)
    path = Path(content["folder"])
    for name, sha256 in content["files_sha256"].items():
        if not (path / name).is_file() or file_sha256(path / name) != sha256:
            raise Damaged(path / name, "is not the file that the experiment began with", _begin_again(manifest))
    return check_folder(path, content["head"])


def load_network(
    manifest: str | Path, folder: str | Path | None = None, labels: tuple[str, ...] = (), new_head: bool = True
) -> transformers.PreTrainedModel:
    """The network that a manifest describes, or the one that a later stage has saved in a folder, in eval mode.

    labels: of a classification, in the order of their ids; they are in the configuration of a saved network.  A new
    head gets random weights from PyTorch's generator; it is refused where new_head is False, since nothing trains it.
    Classifiers of texts are padded as the task's batches are.
    Raises UserError when the network cannot be loaded, or a file in the folder is not as it was saved.
    """
    prepared = source = prepared_folder(manifest)
    if folder is not None:
        _check_saved(Path(folder))
        source = check_folder(folder, source.head, converted=True, with_processor=False)
    model = load_model(source, labels, attention=_read(manifest)["attention"], new_head=new_head)
    if source.head == "sequence_classification":  # decoders find the last token of a text by it
        model.config.pad_token_id = padding_id(load_tokenizer(prepared))
    return model


def save_network(model: transformers.PreTrainedModel, folder: str | Path) -> None:
    """Write config.json and model.safetensors whole, the two files that load_network reads.

    The metadata of the weights has their checksum and the one of config.json: transformers knows no key for it there.
    Raises UserError when they cannot be written.
    """
    folder = Path(folder)
    with writing(folder), tempfile.TemporaryDirectory(dir=folder) as temporary, quiet_transformers():
        model.save_pretrained(temporary)
        config = Path(temporary, "config.json")
        tensors, metadata = read_tensors(Path(temporary, WEIGHTS), finite=False)
        write_tensors(folder / WEIGHTS, tensors, metadata | {CONFIG_SHA256: file_sha256(config)})
        config.replace(folder / config.name)


def _check_saved(folder: Path) -> None:
    """Raise UserError unless the two files are those of one call of save_network."""
    _, metadata = read_tensors(folder / WEIGHTS, finite=False, unsealed=False)
    config = folder / "config.json"
    if not config.is_file():
        raise Damaged(config, "does not exist")
    if file_sha256(config) != metadata.get(CONFIG_SHA256):
        raise Damaged(config, f"was changed after it was written: its sha256 is not the one in {WEIGHTS}")


def _read(manifest: str | Path) -> dict:
    content = read_json(manifest)
    if missing := {"folder", "head", "attention", "files_sha256"} - content.keys():
        raise Damaged(manifest, f"lacks the key {min(missing)}")
    return content


def _begin_again(manifest: str | Path) -> str:
    return f"put it back, or begin again: snakemake --cores all --force {manifest}"


def _write_random(config: PretrainedConfig, head: str, path: Path, seed: int) -> None:
    """Save a network with random weights, and its tokenizer or image processor.  Raises UserError."""
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    with writing(path), quiet_transformers() as library:
        described = _configuration(library, config.config, head)
        torch.manual_seed(seed)
        try:
            model = getattr(library, HEADS[head]).from_config(described)
        except Exception as error:  # transformers raises whatever a wrong value makes it raise
            raise UserError(f"pretrained.config describes no network ({one_line(error)}); correct it") from error
        model.save_pretrained(temporary)
        if config.tokenizer:
            _copy_processor(resolve(config.tokenizer), temporary)
        elif head == "image_classification":
            size = {"height": described.image_size, "width": described.image_size}
            half = [0.5] * described.num_channels
            library.ViTImageProcessorPil(size=size, image_mean=half, image_std=half).save_pretrained(temporary)
        else:
            raise UserError("pretrained.tokenizer is empty; name the folder of a tokenizer for pretrained.config")
        shutil.rmtree(path, ignore_errors=True)
        temporary.rename(path)


def _configuration(library, keys: Mapping, head: str):
    """The configuration that keys describe.  Raises UserError for an unknown family or key."""
    known = {name: adapter for adapter in adapters().values() for name in adapter.model_types if head in adapter.heads}
    model_type = keys["model_type"]
    if model_type not in known:
        allowed = ", ".join(sorted(known))
        raise UserError(f"pretrained.config.model_type is {show(model_type)}; allowed with the head {head}: {allowed}")
    default = library.AutoConfig.for_model(model_type)
    for key in keys:
        if key != "model_type" and not hasattr(default, key):
            raise UserError(f"pretrained.config: unknown key {show(key)}; {type(default).__name__} lists those allowed")
    try:
        return library.AutoConfig.for_model(**keys)
    except Exception as error:  # as above
        raise UserError(f"pretrained.config describes no network ({one_line(error)}); correct it") from error


def _copy_processor(source: Path, folder: Path) -> None:
    found = [source / name for name in PROCESSORS if (source / name).is_file()]
    if not found:
        raise UserError(f"pretrained.tokenizer: {source} holds no tokenizer and no image processor; name a folder")
    for file in found:
        shutil.copy(file, folder)
