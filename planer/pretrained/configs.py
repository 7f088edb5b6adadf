"""Configurations of networks whose attention projections are MLPs: ``planer-bert`` and ``planer-vit``.

transformers would fill the weights of the projections that are gone with random ones.  So such a network is of no type
that it knows: without planer it refuses the folder.  This module is imported right after transformers' module of
configurations, when torch may not be loaded yet.
"""

from __future__ import annotations

from functools import cache

from transformers.configuration_utils import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from planer.pretrained.adapters import adapters
from planer.pretrained.folder import PREFIX


@cache
def config_class(base: type[PreTrainedConfig]) -> type[PreTrainedConfig]:
    """The configuration of a family's networks with MLPs; it has the key ``projections`` besides (projections.py)."""

    def __post_init__(self, **values) -> None:
        from planer.pretrained.types import register  # loads torch

        base.__post_init__(self, **values)
        register(base)  # whoever reads such a config.json needs the network

    content = {"model_type": PREFIX + base.model_type, "__post_init__": __post_init__, "__module__": __name__}
    return type(f"Planer{base.__name__}", (base,), content)


for _adapter in adapters().values():
    for _name in _adapter.model_types if not _adapter.fixed_projections else ():
        CONFIG_MAPPING.register(PREFIX + _name, config_class(CONFIG_MAPPING[_name]))
