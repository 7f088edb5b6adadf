"""Files of an arm between its stages: labels of neurons, routers, thresholds.

Weights of layers are not stored again.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from torch import nn

from planer.conversion.clusters import apply_labels
from planer.conversion.dynamic import dynamic_layers, make_dynamic
from planer.conversion.neuron_threshold import Thresholds
from planer.errors import Damaged
from planer.files import read_json, read_parquet
from planer.tensors import read_tensors, write_tensors


def read_labels(path: str | Path) -> pd.DataFrame:
    """Columns layer, neuron and expert.  Raises UserError when the file is missing or damaged."""
    return read_parquet(path, {"layer": "text", "neuron": "integer", "expert": "integer"})[0]


def read_thresholds(path: str | Path) -> Thresholds:
    """Calibrated thresholds on neurons.  Raises UserError when the file is missing or damaged."""
    return Thresholds.from_json(read_json(path, "thresholds"))


def split_by(model: nn.Module, labels: pd.DataFrame, width: int, target: str) -> None:
    """Sort the neurons of all layers by expert, and give the layers routers that are not yet trained.

    width, target: of the routers, as in the section train_routers.
    """
    apply_labels(model, labels)
    first = labels[labels["layer"] == labels["layer"].iloc[0]]
    make_dynamic(model, len(first) // first["expert"].nunique(), width, target)


def write_routers(path: str | Path, model: nn.Module) -> None:
    """Write what the split layers have beside their weights: routers and calibrated quantiles."""
    states = {layer.name: layer.state_dict() for layer in dynamic_layers(model)}
    write_tensors(path, {f"{name}.{key}": value for name, state in states.items() for key, value in state.items()})


def read_routers(path: str | Path, model: nn.Module) -> None:
    """Load what write_routers wrote into the layers of ``split_by``.

    Raises UserError when the file is missing, damaged, or of another network.
    """
    tensors, _ = read_tensors(path)
    for layer in dynamic_layers(model):
        own = {key: tensors.pop(f"{layer.name}.{key}", None) for key in layer.state_dict()}
        wrong = [key for key, value in layer.state_dict().items() if own[key] is None or own[key].shape != value.shape]
        if wrong:
            raise Damaged(path, f"does not fit the network in {layer.name}.{wrong[0]}")
        layer.load_state_dict(own)
    if tensors:
        raise Damaged(path, f"does not fit the network, which has no {min(tensors)}")
