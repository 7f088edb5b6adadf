"""Saved Hugging Face folders: whether planer can use one, found out before anything is loaded.

Needs neither torch nor transformers.  Weights are read from safetensors only, and no code of a folder is run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from safetensors import SafetensorError, safe_open

from planer.config.paths import resolve
from planer.config.pretrained import PretrainedConfig
from planer.errors import Damaged, UserError
from planer.files import check_shape, one_line
from planer.parsing import show
from planer.pretrained.adapters import adapters
from planer.pretrained.adapters.adapter import Adapter

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TOKENIZERS = (("tokenizer.json",), ("vocab.txt",), ("vocab.json", "merges.txt"))
"""Files from which transformers makes a tokenizer."""
IMAGES = (("preprocessor_config.json",),)
PROCESSORS = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("vocab.txt", "vocab.json", "merges.txt", "preprocessor_config.json"),
)
"""Files of tokenizers and image processors."""
SIDE_FILES = (*PROCESSORS, "generation_config.json")
"""Files that the folder of an arm has from its network's."""
CLASSES = {
    "causal_lm": ("ForCausalLM", "LMHeadModel"),
    "masked_lm": ("ForMaskedLM",),
    "sequence_classification": ("ForSequenceClassification",),
    "image_classification": ("ForImageClassification",),
    "question_answering": ("ForQuestionAnswering",),
}
"""How the names of transformers' classes end, by head."""
METHOD, ROUTERS = "planer", ".replacement."
"""The name of our conversion in config.json; part of the names of weights that a converted network has and its family
has not."""
PREFIX = "planer-"
"""Before the model_type of a family: networks whose attention projections are MLPs (configs.py)."""
SAVE_AGAIN = "save the network once with transformers: model.save_pretrained(folder)"


@dataclass(frozen=True)
class Folder:
    """A folder that passed the checks of ``check_folder``."""

    path: Path
    """Absolute: transformers would take a relative name for one of its hub too."""
    config: Mapping
    adapter: Adapter
    head: str
    weights: tuple[Path, ...]

    @property
    def conversion(self) -> Mapping | None:
        """How planer converted the network (``planer.conversion.stored``); None where it did not."""
        return self.config.get("quantization_config")

    @property
    def projections(self) -> Mapping | None:
        """Which attention projections are MLPs (``planer.pretrained.projections``); None where none is."""
        return self.config["projections"] if self.config["model_type"].startswith(PREFIX) else None


def network_files(config: PretrainedConfig) -> list[Path]:
    """Files that an experiment's network is made from and that are there: of its folder, or of its tokenizer's."""
    source = config.folder or config.tokenizer
    if not source or not os.path.isdir(folder := resolve(source)):
        return []
    names = (*SIDE_FILES, "config.json", INDEX, "*.safetensors") if config.folder else PROCESSORS
    return sorted(file for name in names for file in folder.glob(name) if file.is_file())


def is_pretrained(folder: str | Path) -> bool:
    """Whether a folder holds a network in transformers' classes: exported networks of ours say what they are too."""
    return os.path.isfile(Path(folder) / "config.json") and not os.path.isfile(Path(folder) / "architecture.yaml")


def check_folder(folder: str | Path, head: str, converted: bool = False, with_processor: bool = True) -> Folder:
    """Find out whether a network with this head can be loaded from a folder.

    head: ``causal_lm``, ``masked_lm``, ``sequence_classification``, ``image_classification`` or
    ``question_answering``.  converted: accept a network that was converted before.  with_processor: whether there must
    be a tokenizer, or for images an image processor.
    Raises UserError, one line, when the folder lacks a file, has a damaged one, is of an unknown family, holds
    quantized weights or needs code of its own, or when its family has no such head.
    """
    if not os.path.isdir(folder):  # Path.is_dir raises OSError for names that are too long
        name = one_line(str(folder), 200)
        _refuse(name, "is no folder", "name one that save_pretrained wrote; names on a hub are not fetched")
    path = Path(folder).resolve()
    config = _read_config(path)
    adapter = _adapter(path, config)
    _refuse_converted(path, config, converted)
    _check_conversion(path / "config.json", config)
    if head not in adapter.heads:
        _refuse(path, f"has no head {show(head)}", f"allowed for {config['model_type']}: {', '.join(adapter.heads)}")
    weights = _weight_files(path)
    for file in weights:
        _check_weights(file)
    if with_processor:
        _require_one_of(path, IMAGES if head == "image_classification" else TOKENIZERS)
    return Folder(path, config, adapter, head, weights)


def head_of(folder: str | Path) -> str:
    """The head of the network that was saved in a folder.  Raises UserError when config.json does not say it."""
    name = _class_of(_read_config(Path(folder)))
    if head := _head(name):
        return head
    _refuse(folder, f"holds a network of the class {show(name)} without a head", f"allowed: {', '.join(CLASSES)}")


def check_generates(folder: str | Path) -> None:
    """Raise UserError where the network of a folder does not generate text."""
    config = _read_config(Path(folder))
    name = _class_of(config)
    if _head(name) not in (None, "causal_lm") or "causal_lm" not in _adapter(Path(folder), config).heads:
        holds = f"it holds a {name or config['model_type']}"
        _refuse(folder, f"does not generate text: {holds}", "name the folder of a decoder")


def _class_of(config: Mapping) -> object:
    """The first class that config.json names, if any."""
    classes = config.get("architectures")
    return classes[0] if isinstance(classes, list) and classes else None


def _head(name: object) -> str | None:
    """The head of a class of transformers; None for another class."""
    return next((head for head, endings in CLASSES.items() if str(name).endswith(endings)), None)


def _read_config(path: Path) -> dict:
    return _read_json(path / "config.json", "name the folder of a saved network")


def _refuse(path: str | Path, problem: str, advice: str, cause: Exception | None = None) -> NoReturn:
    raise UserError(f"pretrained.folder: {path} {problem}; {advice}") from cause


def _read_json(path: Path, advice: str) -> dict:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        _refuse(path.parent, f"has no {path.name}", advice)
    except (OSError, ValueError, RecursionError) as error:
        _refuse(path, f"is no readable JSON ({one_line(error)})", SAVE_AGAIN, error)
    if not isinstance(content, dict):
        _refuse(path, "holds no keys and values", SAVE_AGAIN)
    return content


def _adapter(path: Path, config: dict) -> Adapter:
    """The adapter of the family that config.json names."""
    model_type = config.get("model_type")
    known = {name: adapter for adapter in adapters().values() for name in adapter.model_types}
    if "auto_map" in config:
        _refuse(path, "needs Python code of its own (auto_map), which is never run", "use a class of transformers")
    family = model_type.removeprefix(PREFIX) if isinstance(model_type, str) else None
    if family not in known:
        name = f"{_class_of(config)} " if _class_of(config) else ""
        advice = (
            f"allowed: {', '.join(sorted(known))}; a family more is a file like planer/pretrained/adapters/llama.py"
        )
        _refuse(path, f"is a network {name}of the unknown model_type {show(model_type)}", advice)
    return known[family]


def _refuse_converted(path: Path, config: dict, converted: bool) -> None:
    if config["model_type"].startswith(PREFIX) and not converted:
        _refuse(path, "has MLPs in the place of attention projections", "name the folder that it was made from")
    quantization = config.get("quantization_config")
    if isinstance(quantization, dict) and quantization.get("quant_method") == METHOD:
        if not converted:
            _refuse(path, "is converted already", f"write the plain one: python -m planer export {path} OUT --plain")
    elif quantization:
        _refuse(path, "holds quantized weights", "dequantize the network, and save it again")


def _check_conversion(path: Path, config: dict) -> None:
    """Raise UserError where the keys of a converted network in its config.json are damaged."""
    described = {}
    if config.get("quantization_config"):
        described["quantization_config"] = config["quantization_config"]
    if config["model_type"].startswith(PREFIX):
        described["projections"] = config.get("projections")
    try:
        if described:
            check_shape(path, described, "conversion")
    except Damaged as error:
        _refuse(path, error.problem, "copy the whole folder again", error)


def _weight_files(path: Path) -> tuple[Path, ...]:
    if (path / WEIGHTS).is_file():
        return (path / WEIGHTS,)
    if (path / INDEX).is_file():
        names = _read_json(path / INDEX, "").get("weight_map")
        shards = sorted(set(map(str, names.values()))) if isinstance(names, dict) else []
        missing = [name for name in shards if Path(name).name != name or not (path / name).is_file()]
        if missing or not shards:
            _refuse(path, f"lacks {missing[0] if missing else 'all files'} that {INDEX} names", "copy the whole folder")
        return tuple(path / name for name in shards)
    if pickles := sorted(file.name for file in path.glob("*.bin")):
        _refuse(path, f"has weights as {pickles[0]} only, a pickle, which is never read", SAVE_AGAIN)
    _refuse(path, f"has no {WEIGHTS}", "copy the whole folder")


def _check_weights(file: Path) -> None:
    try:
        with safe_open(file, framework="np") as content:
            names = list(content.keys())
    except (SafetensorError, OSError) as error:
        _refuse(file, f"is damaged ({one_line(error)})", "copy it again")
    if not names:
        _refuse(file, "holds no weights", SAVE_AGAIN)


def _require_one_of(path: Path, choices: tuple[tuple[str, ...], ...]) -> None:
    if not any(all((path / name).is_file() for name in names) for names in choices):
        wanted = ", or ".join(" and ".join(names) for names in choices)
        advice = "copy it from where the network came from, or save it: tokenizer.save_pretrained(folder)"
        if choices is IMAGES:
            advice = advice.replace("tokenizer", "image_processor")
        _refuse(path, f"lacks {wanted}", advice)
