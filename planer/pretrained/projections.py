"""Attention projections of networks in transformers' classes, and the MLPs that replace them (D2DMoE, section 3.4).

Each projection, d x d, becomes an MLP d -> h -> d.  Such a network lacks weights of its family, and has a type of its
own (configs.py).  ``projections`` in its config.json says what was replaced:

- ``replace``: names in NAMES;
- ``width``: hidden neurons h;
- ``dropout``: in training, after both layers;
- ``activation``: ``relu``, or null for that of the network's feed-forward layers.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from operator import attrgetter

from torch import nn

from planer.blocks.projection import ProjectionLayer
from planer.errors import UserError
from planer.pretrained.adapters import adapter_for

NAMES = ("query", "key", "value", "output")
"""Projections of an attention, in the order of ``Adapter.projections``."""


def projections(model: nn.Module, names: Sequence[str] = NAMES) -> dict[str, nn.Linear]:
    """Projections of every attention by their modules' names, in order.

    names: of NAMES.  Raises UserError for families whose projections are not replaced.
    """
    adapter = adapter_for(model)
    if adapter.fixed_projections:
        raise UserError(f"projections of {type(model).__name__} cannot be replaced: {adapter.fixed_projections}")
    paths = [path for name, path in zip(NAMES, adapter.projections, strict=True) if name in names]
    attentions = adapter.find(model, adapter.attention)
    return {f"{name}.{path}": attention.get_submodule(path) for name, attention in attentions for path in paths}


def new_layers(model: nn.Module, description: Mapping) -> dict[str, ProjectionLayer]:
    """MLPs with PyTorch's usual random weights for the projections of a description, which stay in the network."""
    if description["activation"] == "relu":
        activation = nn.ReLU()
    else:
        adapter = adapter_for(model)
        activation = attrgetter(adapter.activation)(adapter.find(model, adapter.layers)[0][1])
    width, dropout = description["width"], description["dropout"]
    found = projections(model, description["replace"])
    return {
        name: ProjectionLayer(
            *(one.in_features, one.out_features, width, copy.deepcopy(activation), dropout), one.bias is not None
        )
        for name, one in found.items()
    }


def put(model: nn.Module, layers: Mapping[str, ProjectionLayer]) -> None:
    """Put MLPs in the place of the projections of these names."""
    for name, layer in layers.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer)
