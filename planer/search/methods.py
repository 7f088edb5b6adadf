"""What the searches of other variants change in an experiment's config.

``target_<t>`` searches the design space as configured.  ``isoparam_<t>`` is the same search with a dense layer as wide
as all experts in the place of mixtures of experts (PLANER, arXiv 2208.14580, section 4).  ``par_search`` is PAR's
(arXiv 2009.04534): its three options, no latency loss, the argmax of the architecture weights, and its stopping rule.
A ``-scratch`` variant has the papers' supernet: random weights at the start, no teacher, options sampled by the
architecture weights alone, and weights of its own for every option.
"""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

from planer.config import SearchConfig
from planer.variant import Variant

SCRATCH = {"start": "scratch", "distill": 0.0, "sampling": "plain", "weight_sharing": "none"}
"""The papers' supernet, as keys of the section search."""
PAR_STOP = 0.75
"""PAR's search ends when the argmax has not changed for this share of the architecture phase."""


def config_of(config: SimpleNamespace, variant: Variant) -> SimpleNamespace:
    """The sections of a stage as the variant's search sees them."""
    config = SimpleNamespace(**vars(config))
    config.search = search_config(config.search, variant)
    if variant.arm in ("isoparam", "par_search"):
        config.design_space = getattr(config.arms, variant.arm)
    if variant.arm == "par_search" and hasattr(config, "sample_architecture"):
        changes = {"solver": "argmax", "scores": "alpha", "corrections": 0, "num_solutions": 1, "num_random": 0}
        config.sample_architecture = dataclasses.replace(config.sample_architecture, **changes)
    return config


def search_config(search: SearchConfig, variant: Variant) -> SearchConfig:
    """The section search as the variant's search sees it."""
    if variant.scratch:
        search = dataclasses.replace(search, **SCRATCH)
    if variant.arm == "par_search":
        search = dataclasses.replace(search, latency_weight=0.0)
    return search


def stop_share(variant: Variant) -> float:
    """Share of the architecture phase for which the argmax must stay the same to end the search; 0: never."""
    return PAR_STOP if variant.arm == "par_search" else 0.0
