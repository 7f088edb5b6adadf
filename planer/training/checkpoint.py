"""Resumable state on disk: one safetensors file that is always the last whole one, wherever a job is killed."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch
from torch import Tensor

from planer.errors import Damaged
from planer.files import replacing, sync
from planer.tensors import read_tensors, write_tensors


class Checkpoint:
    """One checkpoint, in a subfolder ``checkpoint`` where nothing else may live.

    identity says what the state belongs to (stage, configuration, data, seed): a run that would mean something else
    must not resume from it.  The file is written beside the old one, synced to disk and renamed, so that a kill
    at any instant leaves the old checkpoint or the new one.
    """

    def __init__(self, folder: str | Path, identity: str) -> None:
        self.path = Path(folder) / "checkpoint" / "state.safetensors"
        self.identity = identity

    def part(self, folder: str, identity: str) -> Checkpoint:
        """Another checkpoint, for a part of the same job: in a subfolder, with a longer identity."""
        return Checkpoint(self.path.parents[1] / folder, f"{self.identity} {identity}")

    def save(self, tensors: dict[str, Tensor], values: dict) -> None:
        """Write tensors (any device; tensors under two names are stored once) and values (JSON) atomically.

        Raises UserError when the disk is full or the folder cannot be written; the last checkpoint is then untouched.
        """
        stored, aliases = storable(tensors)
        note = json.dumps({"identity": self.identity, "aliases": aliases, "values": values})
        write_tensors(self.path, stored, {"checkpoint": note})
        sync(self.path.parent)

    def load(self) -> tuple[dict[str, Tensor], dict] | None:
        """The last arguments of save(), on the CPU; None without a checkpoint.

        A checkpoint of another identity, or a damaged one, is ignored with a line on stderr.
        """
        for file in self.path.parent.glob("*"):
            if file != self.path:  # left behind by a writer that was killed; large, and safetensors names its own
                file.unlink(missing_ok=True)
        if not self.path.exists():
            return None
        try:
            tensors, note = _read(self.path)
        except Damaged as error:
            _say(f"not resuming from {self.path}, which is damaged: it {error.problem}")
            return None
        if note["identity"] != self.identity:
            _say(f"not resuming from {self.path}: it belongs to {note['identity']}, this is {self.identity}")
            return None
        return tensors, note["values"]

    def hand_over(self, path: str | Path) -> None:
        """Write the checkpoint where another job takes it up from."""
        with replacing(path) as temporary:
            shutil.copyfile(self.path, temporary)

    def take_up(self, path: str | Path) -> None:
        """Begin with the checkpoint that another job handed over, unless there is one already.

        Raises UserError when the file is missing, damaged or changed.
        """
        if self.load() is None:
            tensors, note = _read(path)
            self.save(tensors, note["values"])

    def delete(self) -> None:
        """Remove the checkpoint: for the caller, once everything that training was for is safely written."""
        shutil.rmtree(self.path.parent, ignore_errors=True)


def _read(path: str | Path) -> tuple[dict[str, Tensor], dict]:
    """Tensors, repeated ones under all their names, and the note with them.  Raises Damaged."""
    tensors, metadata = read_tensors(path, finite=False, unsealed=False)
    if "checkpoint" not in metadata:
        raise Damaged(path, "is no checkpoint")
    note = json.loads(metadata["checkpoint"])
    return tensors | {name: tensors[source] for name, source in note["aliases"].items()}, note


def storable(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Contiguous CPU tensors without shared memory, as safetensors wants, and name -> first name of repeated ones."""
    stored: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple, str] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach()
        place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and place in seen:
            aliases[name] = seen[place]
            continue
        seen[place] = name
        storage = tensor.untyped_storage().data_ptr()
        shares_memory = tensor.device.type == "cpu" and storage in storages
        storages.add(storage)
        tensor = tensor.cpu()
        packed = torch.contiguous_format
        stored[name] = tensor.clone(memory_format=packed) if shares_memory else tensor.contiguous()
    return stored, aliases


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
