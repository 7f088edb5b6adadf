"""What the searches of other variants change in an experiment's config.

``target_<t>`` searches the design space as configured.  ``isoparam_<t>`` is the same search with a dense layer as wide
as all experts in the place of mixtures of experts (PLANER, arXiv 2208.14580, section 4).  ``par_search`` is PAR's
(arXiv 2009.04534): its three options, no latency loss, the argmax of the architecture weights, and its stopping rule.
"""

from __future__ import annotations

import copy
import dataclasses
from types import SimpleNamespace

from planer.variant import Variant

PAR_STOP = 0.75
"""PAR's search ends when the argmax has not changed for this share of the architecture phase."""


def config_of(config: SimpleNamespace, variant: Variant) -> SimpleNamespace:
    """The sections of a stage as the variant's search sees them."""
    if variant.arm not in ("isoparam", "par_search"):
        return config
    config = copy.copy(config)
    config.design_space = getattr(config.arms, variant.arm)
    if variant.arm == "par_search":
        config.search = dataclasses.replace(config.search, latency_weight=0.0)
        if hasattr(config, "sample_architecture"):
            changes = {"solver": "argmax", "scores": "alpha", "corrections": 0, "num_solutions": 1, "num_random": 0}
            config.sample_architecture = dataclasses.replace(config.sample_architecture, **changes)
    return config


def stop_share(variant: Variant) -> float:
    """Share of the architecture phase for which the argmax must stay the same to end the search; 0: never."""
    return PAR_STOP if variant.arm == "par_search" else 0.0
