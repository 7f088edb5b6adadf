"""The deliverable of an arm: a converted network as an ordinary folder of its family, and the plain one from it."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from planer.errors import UserError
from planer.files import new_folder, write_json, write_text, writing
from planer.parsing import show
from planer.pretrained.card import model_card
from planer.pretrained.folder import INDEX, ROUTERS, SIDE_FILES, Folder, check_folder, head_of
from planer.pretrained.load import quiet_transformers
from planer.tensors import read_tensors, write_tensors

if TYPE_CHECKING:
    import transformers

LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*")


def write_folder(
    model: transformers.PreTrainedModel, source: Folder, out: str | Path, evaluation: Mapping | None = None
) -> None:
    """Write the network of an arm; a converted one has sorted neurons, and is marked (``planer.conversion.hub.mark``).

    transformers loads the folder with the converted layers after ``import planer.pretrained``, else as the dense
    network.  source: the network that was converted; its tokenizer or image processor and its licence are copied.
    evaluation: the arm's eval.json, for the card; it is in the folder then.  Files in ``out`` are replaced.
    Raises UserError when the folder cannot be written.
    """
    out = Path(out)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out) as temporary:
            made = Path(temporary)
            with quiet_transformers():
                model.save_pretrained(made)
            _copy_rest(source.path, made)
            if evaluation:
                write_json(made / "eval.json", dict(evaluation))
            write_text(made / "README.md", model_card(made, source.head, source.path, evaluation))
            for file in made.iterdir():
                file.replace(out / file.name)


def export_plain(folder: str | Path, out: str | Path) -> None:
    """Write the dense network of a converted folder, without anything of planer's, into a new or empty one; nothing
    stays there when it fails.

    Raises UserError when folder holds no converted network, or one without its own projections, or out is not empty.
    """
    found, out = check_folder(folder, head_of(folder), converted=True), Path(out)
    if found.projections:
        raise UserError(
            f"{show(str(folder))} has MLPs in the place of attention projections, which its family has not; "
            "use it with import planer.pretrained"
        )
    if not found.conversion:
        raise UserError(f"{show(str(folder))} is a plain network already; use it as it is")
    with new_folder(out), writing(out):
        _write_plain(found, out)


def _write_plain(found: Folder, out: Path) -> None:
    for file in found.weights:
        tensors, _ = read_tensors(file, finite=False)
        plain = {name: tensor for name, tensor in tensors.items() if ROUTERS not in name}
        write_tensors(out / file.name, plain, {"format": "pt"})
    if len(found.weights) > 1:
        _write_index(found.path / INDEX, out / INDEX)
    _copy_rest(found.path, out)
    config = {key: value for key, value in found.config.items() if key != "quantization_config"}
    write_text(out / "config.json", json.dumps(config, indent=2) + "\n")


def _write_index(path: Path, out: Path) -> None:
    content = json.loads(path.read_bytes())
    content["weight_map"] = {name: file for name, file in content["weight_map"].items() if ROUTERS not in name}
    write_text(out, json.dumps(content, indent=2) + "\n")


def _copy_rest(source: Path, out: Path) -> None:
    """Copy tokenizer or image processor, settings of generation, and licences."""
    licences = [file.name for pattern in LICENCES for file in source.glob(pattern) if file.is_file()]
    for name in (*SIDE_FILES, *licences):
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)
