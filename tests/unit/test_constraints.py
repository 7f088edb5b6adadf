"""Limits on latency, parameters, FLOPs and memory of a chosen network."""

from __future__ import annotations

import dataclasses
import itertools
from fractions import Fraction

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy import MS, VOCAB_SIZE, experiment, latency_table

from planer.config.variant import parse_variant
from planer.errors import UserError
from planer.latency.table import LatencyTable
from planer.search.constraints import PICOSECONDS, Limit, latency_limit, limits_of, used
from planer.search.network import space_of
from planer.search.proposers import PROPOSERS

ALPHA = {"scores": "alpha", "slack": 1.0, "min_distance": 1}
CONFIG = experiment(candidates=ALPHA)
BASELINE = CONFIG.model.architecture(VOCAB_SIZE, CONFIG.patterns.baseline)
ALL = {"params": 0.9, "active_params": 0.8, "flops": 0.7, "memory": 0.6}


@pytest.mark.parametrize("path", [[0, 0, 0, 0], [1, 3, 2, 4], [5, 5, 2, 2]])
def test_costs_of_blocks_add_up_to_those_of_the_network(path):
    limits = {limit.name: limit for limit in limits_of(CONFIG, BASELINE, latency_table(), 0.5, **ALL)}
    network = CONFIG.model.architecture(VOCAB_SIZE, tuple(CONFIG.model.option(CONFIG.design_space[i]) for i in path))
    work = CONFIG.workload
    assert limits["target"].of(path) / PICOSECONDS == pytest.approx(latency_table().estimate(network, "cached"))
    assert limits["params"].of(path) == network.params()
    assert limits["active_params"].of(path) == network.active_params()
    flops = network.flops(work.batch, work.tgt_len, work.mem_len, "cached")
    assert limits["flops"].of(path) == flops * work.batch * work.tgt_len
    remembered = sum(2 * block.width for block in network.blocks if block.kind == "attention")
    assert limits["memory"].of(path) == 4 * (network.params() + work.batch * work.mem_len * remembered)
    assert {name: limit.share for name, limit in limits.items()} == pytest.approx(ALL | {"target": 0.5}, abs=1e-4)


def proposed(config, target: float, table: LatencyTable, alpha: torch.Tensor, number: int = 1):
    """The solver's networks by the architecture weights, and the shares of the limits that each uses."""
    space = space_of(config, parse_variant(f"target_{target}"), VOCAB_SIZE, table, 0, alpha=alpha)
    found = list(itertools.islice(PROPOSERS["solver"](space), number))
    return [(space.network(c.options), used(space.limits, c.options)) for c in found]


def test_chosen_networks_keep_every_limit():
    config = experiment(candidates=ALPHA | {"limits": ALL})
    alpha = torch.randn(4, 6, generator=torch.Generator().manual_seed(3))
    found = proposed(config, 0.8, latency_table(), alpha, 3)
    assert len({network.pattern for network, _ in found}) == 3
    for network, shares in found:
        assert shares.keys() == {"target"} | ALL.keys()
        assert shares["target"] <= 0.8 and all(shares[name] <= share for name, share in ALL.items())
        assert shares["params"] == network.params() / BASELINE.params()


def table_of_two_batches() -> LatencyTable:
    """At batch 1 a mixture of experts takes as long as at batch 4, every other block a quarter of that."""
    table = latency_table()
    small = table.rows.assign(batch=1)
    small["median_ms"] *= small["option"].str.startswith("moe").map({True: 1.0, False: 0.25})
    return dataclasses.replace(table, rows=pd.concat([table.rows, small], ignore_index=True))


def test_a_network_chosen_under_two_batches_keeps_both():
    table, alpha = table_of_two_batches(), torch.zeros(4, 6)
    alpha[:, CONFIG.design_space.index("moe_top2")] = 3.0
    alpha[:, CONFIG.design_space.index("moe_top1")] = 2.0
    alpha[:, CONFIG.design_space.index("attention_2")] = 1.0
    limits = {"latency_batch_1": 0.9}
    config = experiment(candidates=ALPHA | {"limits": limits}, profile_blocks={"batches": [1]})
    chosen = {}
    for name, setting in (("one", CONFIG), ("both", config)):
        ((chosen[name], shares_used),) = proposed(setting, 0.9, table, alpha)
    shares = {
        name: [table.estimate(network, "cached", batch) / table.estimate(BASELINE, "cached", batch) for batch in (4, 1)]
        for name, network in chosen.items()
    }
    assert shares["one"][0] <= 0.9 < shares["one"][1], "with one limit, the other is exceeded"
    assert max(shares["both"]) <= 0.9
    assert shares_used == pytest.approx({"target": shares["both"][0], "latency_batch_1": shares["both"][1]})


@pytest.mark.parametrize("kinds", [["segment", "decode"], ["decode", "segment"]])
def test_the_target_and_a_limit_are_latencies_of_two_kinds_of_calls(kinds):
    """Decoding takes 10 times as long; mixtures of experts take a tenth."""
    config = experiment(workload={"kinds": kinds, "decode": {"batch": 1, "mem_len": 9}})
    rows, decoding = latency_table().rows, latency_table().rows
    decoding = decoding[decoding["attention"] == "cached"].assign(batch=1, execution="decode")
    decoding["median_ms"] *= decoding["option"].str.startswith("moe").map({True: 0.1, False: 10.0})
    here = latency_table().identity | {key: getattr(config.workload.target, key) for key in ("batch", "execution")}
    table = LatencyTable(pd.concat([rows, decoding]), here, {})
    other = f"latency_{kinds[1]}"
    limits = {limit.name: limit for limit in limits_of(config, BASELINE, table, 0.5, **{other: 0.25})}
    segments, tokens = limits["target"], limits[other]
    if kinds[0] == "decode":
        segments, tokens = tokens, segments
    path = [1, 3, 2, config.design_space.index("moe_top1")]
    ms = [MS["embedding_and_head"]] + [MS[config.design_space[option]] for option in path]
    assert segments.of(path) / PICOSECONDS == pytest.approx(sum(ms))
    assert tokens.of(path) / PICOSECONDS == pytest.approx(10 * sum(ms[:-1]) + 0.1 * ms[-1])
    assert (limits["target"].share, limits[other].share) == pytest.approx((0.5, 0.25))


def test_a_limit_of_calls_that_are_not_measured_is_refused():
    limits = {"limits": {"latency_decode": 0.5}}
    with pytest.raises(UserError, match=r"limits: latency_decode needs decode among workload\.kinds"):
        experiment(candidates=limits)
    assert experiment(candidates=limits, workload={"kinds": ["segment", "decode"]})


def test_a_batch_that_was_not_measured_is_refused():
    with pytest.raises(UserError, match=r"latency_batch_3 needs 3 among profile_blocks\.batches"):
        experiment(candidates={"limits": {"latency_batch_3": 0.5}}, profile_blocks={"batches": [1]})
    with pytest.raises(UserError, match="has no batch 1 with eager execution; it has: 4"):
        limits_of(CONFIG, BASELINE, latency_table(), 0.5, latency_batch_1=0.5)


def test_used_shares_are_relative_to_the_baseline():
    limits = limits_of(CONFIG, BASELINE, latency_table(), 1.0, params=1.0)
    path = [CONFIG.design_space.index(block.name) for block in BASELINE.blocks]
    assert used(limits, path) == {"target": 1.0, "params": 1.0}


SHARES = st.decimals("0.01", 2, places=3)


@given(st.lists(st.floats(0, 20), min_size=2, max_size=6), st.floats(1e-3, 5), SHARES, st.randoms())
def test_the_baseline_keeps_a_limit_of_one_and_no_budget_is_above_its_share(costs, fixed, share, random):
    path = random.choices(range(len(costs)), k=40)
    limit = latency_limit("target", 1.0, costs, fixed, [costs[option] for option in path])
    assert limit.of(path) == limit.budget == limit.baseline
    other = limit.at(float(share))
    assert Fraction(other.budget) <= Fraction(share) * limit.baseline < other.budget + 1
    assert other.share <= float(share)


def test_a_target_out_of_reach_names_the_reachable_range():
    limit = latency_limit("target", 0.1, [0.4575, 2.8275], 1.0, [2.825] * 4)
    with pytest.raises(UserError) as error:
        limit.require_reachable(4)
    assert str(error.value) == (
        "target 0.1 cannot be met: reachable range is 0.24 to 1.00 of the baseline's 12.3 ms; "
        "choose a target in that range"
    )
    limit.at(0.24).require_reachable(4)


def test_costs_are_whole_numbers():
    with pytest.raises(ValueError, match="costs, budget and baseline of flops must be whole numbers"):
        Limit("flops", [1, 2.5], 0, 1, 1, "FLOPs")
