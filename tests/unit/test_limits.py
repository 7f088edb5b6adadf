"""Limits of a choice add up to what the chosen network really is."""

from __future__ import annotations

import pytest
import torch
from toy import VOCAB_SIZE, experiment, latency_table

from planer.search.limits import limits_of, used
from planer.search.sample import sample_architecture
from planer.variant import parse_variant

CONFIG = experiment(sample_architecture={"scores": "alpha", "slack": 1.0})
BASELINE = CONFIG.model.architecture(VOCAB_SIZE, CONFIG.patterns.baseline)
ALL = {"params": 0.9, "active_params": 0.8, "flops": 0.7, "memory": 0.6}


@pytest.mark.parametrize("path", [[0, 0, 0, 0], [1, 3, 2, 4], [5, 5, 2, 2]])
def test_costs_are_those_of_the_whole_network(path):
    limits = {limit.name: limit for limit in limits_of(CONFIG, BASELINE, latency_table(), 0.5, **ALL)}
    network = CONFIG.model.architecture(VOCAB_SIZE, tuple(CONFIG.model.option(CONFIG.design_space[i]) for i in path))
    work = CONFIG.workload
    assert limits["target"].of(path) == latency_table().estimate(network, "cached")
    assert limits["params"].of(path) == network.params()
    assert limits["active_params"].of(path) == network.active_params()
    flops = network.flops(work.batch, work.tgt_len, work.mem_len, "cached")
    assert limits["flops"].of(path) == pytest.approx(flops)
    remembered = sum(2 * block.width for block in network.blocks if block.kind == "attention")
    assert limits["memory"].of(path) == 4 * (network.params() + work.batch * work.mem_len * remembered)
    assert {name: limit.share for name, limit in limits.items()} == pytest.approx(ALL | {"target": 0.5})


def test_the_choice_keeps_every_limit():
    config = experiment(sample_architecture={"scores": "alpha", "slack": 1.0, "limits": ALL, "num_solutions": 3})
    alpha = torch.randn(4, 6, generator=torch.Generator().manual_seed(3))
    architecture, notes = sample_architecture(
        config, parse_variant("target_0.8"), VOCAB_SIZE, latency_table(), alpha=alpha
    )
    shares = notes["selection"]["used"]
    assert shares.keys() == {"target"} | ALL.keys()
    assert shares["target"] <= 0.8 and all(shares[name] <= share for name, share in ALL.items())
    assert shares["params"] == architecture.params() / BASELINE.params()
    alternatives = notes["selection"]["alternatives"]
    assert len(alternatives) == 2 and len({architecture.pattern, *(a["pattern"] for a in alternatives)}) == 3


def test_used_is_relative_to_the_baseline():
    limits = limits_of(CONFIG, BASELINE, latency_table(), 1.0, params=1.0)
    path = [CONFIG.design_space.index(block.name) for block in BASELINE.blocks]
    assert used(limits, path) == {"target": 1.0, "params": 1.0}
