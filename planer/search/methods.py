"""The search method of each variant, as changes of an experiment's configuration.

``target_<t>`` searches the design space as configured.  ``isoparam_<t>`` is the same search with a dense layer as wide
as all experts instead of mixtures of experts (PLANER, arXiv 2208.14580, section 4).  ``par_search`` is PAR's
(arXiv 2009.04534): its three options, no latency loss, the argmax of the architecture weights, and its stopping rule.
A searched ``-scratch`` variant is exactly PLANER's search: random weights at the start, no teacher, options sampled by
the architecture weights alone, separate weights for every option, and the argmax without a measurement.
The controls ``shallow_<t>``, ``random_<t>_<n>`` and ``lts_<t>`` have one proposer each and train no supernet.
"""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

from planer.config import CandidatesConfig, SearchConfig
from planer.config.variant import Variant

SCRATCH = {"start": "scratch", "distill": 0.0, "sampling": "plain", "weight_sharing": "none"}
"""The papers' supernet, as keys of the section search."""
PAR_STOP = 0.75
"""PAR's search ends when the argmax has not changed for this share of the architecture phase."""
ARGMAX = {"scores": "alpha", "corrections": 0}
"""The papers' choice, as keys of the section candidates."""
PROPOSER = {"shallow": "shallow", "random": "random", "lts": "largest", "par_search": "argmax"}
"""Methods with one proposer."""


def config_of(config: SimpleNamespace, variant: Variant) -> SimpleNamespace:
    """The sections of a stage, changed for the variant's search."""
    config = SimpleNamespace(**vars(config))
    if hasattr(config, "search"):
        config.search = search_config(config.search, variant)
    if variant.method in ("isoparam", "par_search"):
        config.design_space = getattr(config.search_methods, variant.method)
    if hasattr(config, "candidates"):
        config.candidates = candidates_config(config.candidates, variant)
    return config


def candidates_config(candidates: CandidatesConfig, variant: Variant) -> CandidatesConfig:
    """The section candidates, changed for the variant's search."""
    proposer = PROPOSER.get(variant.method)
    if variant.searched and variant.scratch:
        proposer = "argmax"
    if proposer is None:
        return candidates
    count = max(1, candidates.proposers.get("shallow", 0)) if proposer == "shallow" else 1
    changes = ARGMAX if proposer == "argmax" else {}
    return dataclasses.replace(candidates, proposers={proposer: count}, **changes)


def needs_supernet(candidates: CandidatesConfig, variant: Variant) -> bool:
    """Whether the variant's network is chosen with a supernet."""
    return variant.method != "keep" and candidates_config(candidates, variant).needs_supernet


def search_config(search: SearchConfig, variant: Variant) -> SearchConfig:
    """The section search, changed for the variant's search."""
    if variant.scratch:
        search = dataclasses.replace(search, **SCRATCH)
    if variant.method == "par_search":
        search = dataclasses.replace(search, latency_weight=0.0)
    return search


def stop_share(variant: Variant) -> float:
    """Share of the architecture phase for which the argmax must stay the same to end the search; 0: never."""
    return PAR_STOP if variant.method == "par_search" else 0.0
