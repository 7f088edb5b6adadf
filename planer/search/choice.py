"""The choice of a variant's network with everything that proposers and proxy training need."""

from __future__ import annotations

import dataclasses
from functools import cache
from types import SimpleNamespace

from planer.config.variant import Variant
from planer.latency.relative import relative_latency
from planer.latency.table import LatencyTable
from planer.models import LanguageModel
from planer.search.halving import Losses
from planer.search.network import chosen_network, space_of
from planer.search.proxy import ProxyTraining
from planer.search.scorers.replace_one import SupernetLoss
from planer.search.space import Candidate
from planer.search.supernet import Supernet
from planer.specs import Architecture


def choose_network(
    config: SimpleNamespace,
    variant: Variant,
    table: LatencyTable,
    proxy: ProxyTraining,
    seed: int,
    parent: LanguageModel | None = None,
    supernet: Supernet | None = None,
) -> tuple[Architecture, dict]:
    """The network of a variant that is no pattern, and the notes that architecture.yaml keeps on it.

    config: the sections of the job as methods.config_of gives them.  seed: of proposals and measurements.  parent: the
    trained baseline, which keep_<q> is compared with.  supernet: where a proposer asks it.
    Raises UserError when no network keeps the limits or the quality.
    """
    texts, runtime, known = proxy.recipe.texts, proxy.recipe.runtime, {}
    text, vocab_size = texts.valid[: config.candidates.tokens], texts.vocab_size
    if supernet is not None:
        supernet = supernet.to(runtime.device)
        known["alpha"] = supernet.alpha.detach()
        loss = cache(SupernetLoss(supernet, text, config.search, runtime))
        known["supernet_loss"] = lambda path: loss(tuple(path))
    space = space_of(config, variant, vocab_size, table, seed, **known)
    if not variant.scratch:
        space.start_loss = cache(lambda options: proxy.untrained(space.network(options), text))
    measurement = None
    if config.candidates.corrections:
        measurement = proxy.measured(relative_latency(config, vocab_size, dataclasses.replace(runtime, seed=seed)))

    def trained(candidate: Candidate, share: float) -> Losses:
        return proxy(space.network(candidate.options), share)

    reference = proxy.reference(parent) if variant.method == "keep" else None
    return chosen_network(config, variant, space, table, measurement, trained, reference)
