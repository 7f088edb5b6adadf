"""Models on disk: architecture.yaml and model.safetensors in one folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from planer.errors import Damaged
from planer.models.transformer import LanguageModel
from planer.specs import Architecture
from planer.tensors import read_tensors, write_tensors


def save(model: LanguageModel, folder: str | Path) -> None:
    """Write architecture.yaml and model.safetensors into folder."""
    folder = Path(folder)
    write_tensors(folder / "model.safetensors", model.state_dict())
    model.architecture.save(folder / "architecture.yaml")


def load(
    folder: str | Path, device: str | torch.device = "cpu", kind: type[LanguageModel] = LanguageModel
) -> LanguageModel:
    """Read a model that ``save`` wrote, ready for inference, at the threshold tau that architecture.yaml stores.

    kind: the class to make.
    Raises UserError when a file is missing, damaged or changed, when weights are not finite, or when they belong to
    another architecture.
    """
    folder = Path(folder)
    architecture, path = Architecture.load(folder / "architecture.yaml"), folder / "model.safetensors"
    weights, _ = read_tensors(path)
    stored = sum(tensor.numel() for tensor in weights.values())
    if architecture.params() > 2 * stored:  # refused before memory is taken for weights that the file does not have
        raise Damaged(path, f"holds {stored:,} weights, architecture.yaml beside it has {architecture.params():,}")
    model = kind(architecture)
    require_fit(path, weights, model.state_dict(), "architecture.yaml beside it")
    if missing := sorted(model.state_dict().keys() - weights.keys()):
        raise Damaged(path, f"does not fit architecture.yaml beside it: {missing[0]} is absent")
    model.load_state_dict(weights)
    return model.to(device).eval()


def require_fit(path: str | Path, weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], network: str) -> None:
    """Raise UserError when the weights of a file have names, shapes or types that the network's do not have."""
    for name in sorted(weights):
        found, wanted = (_shape(tensors.get(name)) for tensors in (weights, expected))
        if found != wanted:
            raise Damaged(path, f"does not fit {network}: {name[:80]} is {found}, expected {wanted}")


def _shape(tensor: Tensor | None) -> str:
    return "absent" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
