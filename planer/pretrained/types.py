"""Classes of transformers with MLPs in the place of attention projections (projections.py, configs.py)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import transformers
from transformers import PreTrainedConfig, PreTrainedModel, conversion_mapping

from planer.blocks.projection import ProjectionLayer
from planer.pretrained.configs import config_class
from planer.pretrained.load import HEADS
from planer.pretrained.projections import new_layers, put


@cache
def model_class(base: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """The class with MLPs for those projections that its configuration names; weights have the names of the family."""

    def __init__(self, config: PreTrainedConfig, *options, **named) -> None:
        base.__init__(self, config, *options, **named)
        put(self, new_layers(self, config.projections))

    name = f"Planer{base.__name__}"
    if renamed := conversion_mapping.get_checkpoint_conversion_mapping(base.__name__):
        conversion_mapping.register_checkpoint_conversion_mapping(name, renamed)
    content = {"__init__": __init__, "config_class": config_class(base.config_class), "__module__": __name__}
    return type(name, (base,), content)


@cache
def register(base: type[PreTrainedConfig]) -> None:
    """Have the Auto classes build a family's networks with MLPs."""
    for auto in (getattr(transformers, name) for name in ("AutoModel", *HEADS.values())):
        if base in auto._model_mapping:
            auto.register(config_class(base), model_class(auto._model_mapping[base]))


def replace_projections(model: PreTrainedModel, layers: Mapping[str, ProjectionLayer], description: Mapping) -> None:
    """Put MLPs in the place of a network's projections; it gets the class that has them.

    description: as in projections.py.
    """
    put(model, layers)
    # One object is the configuration of the network and of all its parts.
    model.config.__class__ = config_class(type(model.config))
    model.config.projections = dict(description)
    model.__class__ = model_class(type(model))
