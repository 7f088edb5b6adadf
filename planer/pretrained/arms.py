"""Whether the arms of an experiment fit its network, as far as config.json tells: found out before any job.

Needs neither torch nor transformers.  Later stages find what config.json leaves out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from planer.config.arms import fitting_selectors
from planer.config.conversion import hidden_width
from planer.config.paths import resolve
from planer.config.pretrained import PretrainedConfig, PretrainedExperiment
from planer.errors import UserError
from planer.parsing import build
from planer.pretrained.adapters import adapters


def check_arm(values: dict, name: str) -> None:
    """Raise UserError where an arm cannot be made of the experiment's network.

    values: the experiment's with the overrides of the arm (``planer.config.arms.arm_values``).
    """
    config = build(PretrainedExperiment, values)
    keys, method = _network_keys(config.pretrained), config.arms[name].method
    known = {model_type: adapter for adapter in adapters().values() for model_type in adapter.model_types}
    adapter = known.get(str(keys.get("model_type")))
    replace = config.projections.replace if method != "dense" else ()
    if replace and adapter and adapter.fixed_projections:
        raise UserError(
            f"config: projections.replace is {', '.join(replace)}; projections of {keys['model_type']} cannot be "
            f"replaced: {adapter.fixed_projections} (arms.{name})"
        )
    if method == "experts":
        try:
            _check_experts(config, adapter.sizes(keys) if adapter else (None, None), bool(replace))
        except UserError as error:
            raise UserError(f"config: {error} (arms.{name})") from error


def _check_experts(config: PretrainedExperiment, sizes: tuple[int | None, int | None], replaces: bool) -> None:
    """Raise UserError unless experts have whole layers, and a selector fits them.

    sizes: as of ``Adapter.sizes``.  replaces: whether MLPs replace attention projections.
    """
    width, neurons = sizes
    layers = {"a feed-forward layer": neurons}
    if replaces:
        factor = config.projections.width_factor
        layers["the MLP of a projection"] = width and hidden_width(width, width, factor)
    expert_size = config.cluster_experts.expert_size
    for layer, size in layers.items():
        if size and size % expert_size:
            raise UserError(
                f"cluster_experts.expert_size is {expert_size}; it must divide the neurons of {layer}, which are {size}"
            )
    alike = len(set(layers.values()) - {None}) < 2
    fitting_selectors(config.evaluate.selectors, config.train_routers.target, alike)


def _network_keys(network: PretrainedConfig) -> Mapping:
    """Keys and values of the network's config.json; none where a job will refuse the folder."""
    if network.config:
        return network.config
    try:
        keys = json.loads((resolve(network.folder) / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return keys if isinstance(keys, dict) else {}
