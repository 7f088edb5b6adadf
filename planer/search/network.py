"""From a variant's name to its architecture and the notes on how it was chosen."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

from planer.config.variant import Variant
from planer.errors import UserError
from planer.latency.relative import Measurement
from planer.latency.table import LatencyTable
from planer.search.candidates import Proxy, choose, measured_candidates
from planer.search.constraints import limits_of, used
from planer.search.halving import Losses
from planer.search.keep import keep, refusal
from planer.search.pattern import noted
from planer.search.space import Candidate, Space
from planer.seed import derive_seed
from planer.specs import Architecture


def space_of(
    config: SimpleNamespace, variant: Variant, vocab_size: int, table: LatencyTable, seed: int, **known
) -> Space:
    """The networks that may be chosen for a variant.

    config: the sections model, patterns, design_space, workload and candidates, as methods.config_of gives them.
    known: further fields of the space, such as losses of networks.
    Raises UserError when no network of the design space keeps the latency target.
    """
    baseline = config.model.architecture(vocab_size, config.patterns.baseline)
    limits = limits_of(config, baseline, table, variant.target or 1.0, **config.candidates.limits)
    for limit in limits:
        limit.require_reachable(len(baseline.blocks))
    return Space(
        config.candidates,
        tuple(config.design_space),
        tuple(config.model.option(name) for name in config.design_space),
        baseline,
        limits,
        derive_seed(seed, "candidates", variant.number),
        **known,
    )


def chosen_network(
    config: SimpleNamespace,
    variant: Variant,
    space: Space,
    table: LatencyTable,
    measurement: Measurement | None,
    proxy: Proxy,
    reference: float | None = None,
) -> tuple[Architecture, dict]:
    """The network of a variant that is no pattern, by proxy training of the space's candidates, and its notes.

    reference: of keep_<q>, the baseline's validation loss on the text that ``proxy`` scores.
    Raises UserError when no network keeps the limits, or the quality of keep_<q>.
    """
    if variant.method == "keep":
        winner, notes = _kept(config, variant, space, measurement, proxy, reference)
    else:
        winner, notes = choose(space, measurement if variant.target is not None else None, proxy)
    network = space.network(winner.options)
    scored_by = {"solver": space.config.scores, "argmax": "alpha", "largest": "params"}
    more = {
        "target": variant.target,
        "scored_by": scored_by.get(winner.source),
        "used": used(space.limits, winner.options),
        "rounds": space.incumbents,
        "scores": {f"position_{b}": [round(s, 6) for s in row] for b, row in enumerate(space.scores)},
        "score_options": list(space.names),
    }
    return network, noted(config, variant, network, table, notes | more)


def _kept(
    config: SimpleNamespace,
    variant: Variant,
    space: Space,
    measurement: Measurement | None,
    proxy: Proxy,
    reference: float,
) -> tuple[Candidate, dict]:
    """The network of keep_<q>, and the path that led to it."""
    found = {}
    for target in config.keep.targets:
        one = dataclasses.replace(space, limits=[space.limits[0].at(target), *space.limits[1:]])
        one.config = dataclasses.replace(space.config, proposers={"shallow": 1})
        try:
            measured = measured_candidates(one, measurement)
        except UserError:  # no cut is so fast
            continue
        for options, candidate in measured.candidates.items():
            found.setdefault(options, (candidate, measured.latency(options)))
    candidates = [candidate for candidate, _ in found.values()]
    if not candidates:
        raise UserError(f"{variant.name}: no cut of the baseline is within keep.targets; allow larger ones")
    latencies = [latency for _, latency in found.values()]

    def train(number: int, share: float) -> Losses:
        return proxy(candidates[number], share)

    how = config.keep
    number, path = keep(variant.loss, reference, latencies, train, how.proxy_share, how.trained)
    patterns = [space.network(candidate.options).pattern for candidate in candidates]
    if number is None:
        raise refusal(variant.name, variant.loss, reference, path, patterns)
    winner = candidates[number]
    return winner, {
        "chosen_by": "quality kept",
        "source": winner.source,
        "status": None,
        "gap": None,
        "score": None,
        "closed_loop": [],
        "candidates": [],
        "path": [{"pattern": p} | dataclasses.asdict(step) for p, step in zip(patterns, path, strict=True)],
        "reference_nll": reference,
    }
