"""Prepared samples of a task on disk: a safetensors file for each split, and manifest.json.

The tensors of a split by the kind of the task, with N samples, S tokens of all of them together:

    text             tokens int32 [S], one continuous text
    masked_tokens    the same
    labelled_text    ids int32 [S]; starts int64 [N + 1]: sample i has the tokens from starts[i] to starts[i + 1] - 1;
                     labels int64 [N]; types uint8 [S], 1 in the second text of a pair, only where there are pairs
    labelled_images  pixels uint8 [N, C, H, W]; labels int64 [N]
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from planer.errors import Damaged
from planer.files import file_sha256, read_json, write_json
from planer.tensors import read_tensors, write_tensors

SPLITS = ("train", "valid", "test")
MANIFEST = "manifest.json"
MULTIPLE = 8
"""Lengths of batches of labelled_text are multiples of it, so that few shapes occur."""


@dataclass(frozen=True)
class TaskFacts:
    """What holds for all splits of a prepared task."""

    kind: str
    """As in the configuration: ``text``, ``masked_tokens``, ``labelled_text`` or ``labelled_images``."""
    metric: str
    """The headline, a key of METRICS in planer/tasks/metrics.py."""
    label_names: tuple[str, ...] = ()
    """Labels in the order of their ids."""
    block_size: int = 0
    """Of a text: tokens that are read together."""
    pad_id: int = 0
    """Token that fills up shorter texts of a batch."""
    first_id: int = 0
    """Symbol before each block of masked_tokens."""
    last_id: int = 0
    """Symbol behind each block of masked_tokens."""
    mask_id: int = 0
    """Symbol in the place of hidden tokens."""
    special_ids: tuple[int, ...] = ()
    """Symbols that are never hidden."""
    vocab_size: int = 0
    """Symbols of the tokenizer, which random ones are taken from."""
    mean: tuple[float, ...] = ()
    """Of images, by channel; subtracted from pixels between 0 and 1."""
    std: tuple[float, ...] = ()
    """Of images, by channel; what is left is divided by it."""
    tokens_per_image: int = 0


def write_task(folder: str | Path, facts: TaskFacts, splits: Mapping[str, Mapping[str, Tensor]], notes: dict) -> None:
    """Write all splits, then the manifest.  notes: further entries of the manifest, for readers."""
    folder, hashes = Path(folder), {}
    for split, tensors in splits.items():
        path = folder / f"{split}.safetensors"
        write_tensors(path, tensors)
        hashes[path.name] = file_sha256(path)
    write_json(folder / MANIFEST, asdict(facts) | notes | {"files_sha256": hashes})


def read_task(folder: str | Path, splits: Iterable[str]) -> tuple[TaskFacts, dict[str, dict[str, Tensor]]]:
    """The facts, and the tensors of some splits by name.  Raises UserError when a file is missing or damaged."""
    folder = Path(folder)
    manifest = read_json(folder / MANIFEST)
    names = TaskFacts.__dataclass_fields__
    if missing := [name for name in names if name not in manifest]:
        raise Damaged(folder / MANIFEST, f"lacks the key {missing[0]}")
    values = {name: manifest[name] for name in names}
    facts = TaskFacts(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
    return facts, {split: read_tensors(folder / f"{split}.safetensors")[0] for split in splits}
