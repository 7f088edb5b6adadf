"""The check that the latencies of blocks in the table add up to those of networks."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import pearsonr
from toy import experiment

from planer.errors import UserError
from planer.latency import additivity as additivity_module
from planer.latency import networks as networks_module
from planer.latency.additivity import (
    IDLE_BAR,
    MIN_NETWORKS,
    agreement,
    check_additivity,
    intervals,
    missed,
    spread_networks,
)
from planer.latency.table import LatencyTable, identity
from planer.runtime import Runtime

CONFIG = experiment(profile_blocks={"warmup": 1, "max_seconds": 20.0})
VOCABULARY = 50
MS = {
    "embedding_and_head": 0.5,
    "skip": 0.0,
    "attention_1": 1.1,
    "attention_2": 2.3,
    "feed_forward": 0.7,
    "moe_top1": 0.9,
    "moe_top2": 1.7,
}
COPIES = 2


def table(config=CONFIG) -> LatencyTable:
    sides = identity(Runtime(), config.workload, config.model, VOCABULARY)
    rows = pd.DataFrame(
        [
            {"option": option, "attention": mode, "median_ms": ms, "routing": "balanced"}
            | {key: sides[key] for key in ("batch", "execution")}
            for option, ms in MS.items()
            for mode in ("cached", "recompute")
        ]
    )
    stacks_ms = {option: COPIES * ms for option, ms in MS.items() if ms and option != "embedding_and_head"}
    return LatencyTable(rows, sides, {"copies": COPIES, "stacks_ms": {"cached": stacks_ms, "recompute": stacks_ms}})


class FakeDevice:
    """Replaces ``measure`` and the pool: networks take ``scale`` times their estimate, stacks ``slowdown`` times their
    entry in the table."""

    def __init__(self, monkeypatch, scale=1.0, slowdown=1.0):
        self.scale, self.slowdown, self.networks = scale, slowdown, []
        monkeypatch.setattr(additivity_module, "measure", self.measure)
        monkeypatch.setattr(networks_module.Pool, "network", self.network)

    def network(self, blocks, attention, head=True):
        self.networks.append(blocks)
        scale, fixed = (self.scale, MS["embedding_and_head"]) if head else (self.slowdown, 0.0)
        return lambda: scale * math.fsum([fixed, *(MS[block.name] for block in blocks)])

    def measure(self, callables, rounds, *arguments):
        rows = [(name, number, call()) for number in range(rounds) for name, call in callables.items()]
        return pd.DataFrame(rows, columns=["name", "round", "ms"])


def test_networks_are_spread_over_the_range():
    costs = np.array([0.0, 0.3, 0.5, 0.9, 1.7, 1.0, 1.2, 2.1])
    networks = spread_networks(costs, 24, 32, seed=0)
    assert len(set(networks)) == len(networks) == 32
    assert {len(network) for network in networks} == {24}
    total = np.array([costs[list(network)].sum() for network in networks])
    middle = (np.arange(32) + 0.5) / 32 * 24 * costs.max()
    assert np.abs(total - middle).mean() < 0.07 * 24 * costs.max()
    assert total.min() < 0.08 * 24 * costs.max() and total.max() > 0.92 * 24 * costs.max()
    used = np.bincount(np.concatenate(networks), minlength=8)
    assert (used > 0.03 * used.sum()).all(), "every option occurs"


def test_networks_depend_on_the_seed():
    costs = np.array([0.0, 1.0, 2.0])
    assert spread_networks(costs, 6, 20, 1) == spread_networks(costs, 6, 20, 1)
    assert spread_networks(costs, 6, 20, 1) != spread_networks(costs, 6, 20, 2)


def test_of_a_small_space_all_networks_are_taken():
    assert sorted(spread_networks(np.array([0.0, 1.0]), 2, 32, 0)) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert len(spread_networks(np.array([1.0, 1.0, 1.0]), 2, 9, 0)) == 9


def test_agreement_of_three_networks():
    result = agreement(np.array([1.1, 1.8, 3.0]), np.array([1.0, 2.0, 3.0]))
    assert result["mape"] == pytest.approx(0.2 / 3)
    assert result["max_ape"] == pytest.approx(0.1)
    assert result["bias"] == pytest.approx(0.0)
    assert result["pearson_r"] == pytest.approx(pearsonr([1.1, 1.8, 3.0], [1.0, 2.0, 3.0])[0])
    assert agreement(np.array([2.0, 2.0]), np.array([1.0, 4.0]))["pearson_r"] == 0.0


def test_intervals_contain_the_statistic_and_narrow_with_more_networks():
    generator = np.random.default_rng(0)
    measured = generator.uniform(5, 50, 200)
    estimated = measured * generator.normal(1.02, 0.05, 200)
    widths = []
    for n in (20, 200):
        bounds, found = intervals(estimated[:n], measured[:n], 3), agreement(estimated[:n], measured[:n])
        assert bounds == intervals(estimated[:n], measured[:n], 3)
        assert all(low <= found[key] <= high for key, (low, high) in bounds.items())
        widths.append(bounds["mape"][1] - bounds["mape"][0])
    assert widths[1] < 0.5 * widths[0]


def test_exact_sums_pass(monkeypatch):
    device = FakeDevice(monkeypatch)
    report = check_additivity(CONFIG, VOCABULARY, table(), Runtime(seed=CONFIG.seed))
    assert report["passed"]
    assert report["pearson_r"] == pytest.approx(1.0)
    assert report["max_ape"] == pytest.approx(0.0)
    assert report["slowdown"] == pytest.approx(1.0)
    assert report["n"] == report["requested"] == 33
    assert [row["name"] for row in report["networks"]] == ["baseline", *(f"random_{i}" for i in range(32))]
    assert report["networks"][0]["options"] == ["attention_2", "feed_forward"] * 2
    assert report["networks"][0]["estimated_ms"] == pytest.approx(6.5)
    for row, blocks in zip(report["networks"], device.networks, strict=False):
        assert row["options"] == [block.name for block in blocks]
        assert set(row["options"]) <= set(CONFIG.design_space)


def test_a_slower_device_passes(monkeypatch):
    FakeDevice(monkeypatch, scale=1.3, slowdown=1.3)
    report = check_additivity(CONFIG, VOCABULARY, table(), Runtime(seed=CONFIG.seed))
    assert report["passed"]
    assert report["slowdown"] == pytest.approx(1.3)
    assert report["max_ape"] == pytest.approx(0.0)
    assert report["networks"][0]["estimated_ms"] == pytest.approx(1.3 * 6.5)


def test_a_bias_fails_with_perfect_correlation(monkeypatch):
    FakeDevice(monkeypatch, scale=1.25)
    report = check_additivity(CONFIG, VOCABULARY, table(), Runtime(seed=CONFIG.seed))
    assert report["pearson_r"] == pytest.approx(1.0)
    assert report["bias"] == pytest.approx(-0.2)
    assert (report["mape"], report["max_ape"]) == pytest.approx((0.2, 0.2))
    assert not report["passed"]


def test_the_config_sets_the_bars(monkeypatch):
    FakeDevice(monkeypatch, scale=1.25)
    loose = {"min_r": 0.9, "max_mape": 0.25, "max_ape": 0.3}
    config = experiment(profile_blocks={"warmup": 1, "max_seconds": 20.0, **loose})
    report = check_additivity(config, VOCABULARY, table(), Runtime(seed=CONFIG.seed))
    assert report["passed"] and report["bar"] == {"pearson_r": 0.9, "mape": 0.25, "max_ape": 0.3}
    assert missed({"pearson_r": 0.95, "mape": 0.2, "max_ape": 0.4}, report["bar"]) == ["max_ape"]
    assert missed(report["bar"], IDLE_BAR) == ["pearson_r", "mape", "max_ape"]


def test_fewer_networks_when_time_is_short(monkeypatch):
    FakeDevice(monkeypatch)
    config = experiment(profile_blocks={"max_seconds": 0.3})
    report = check_additivity(config, VOCABULARY, table(config), Runtime(seed=CONFIG.seed))
    assert MIN_NETWORKS < report["n"] - 1 < 32  # 0.3 s hold 4 rounds of 14 networks of 5.1 ms
    assert report["requested"] == 33
    config = experiment(profile_blocks={"max_seconds": 0.001})
    assert check_additivity(config, VOCABULARY, table(config), Runtime(seed=CONFIG.seed))["n"] == MIN_NETWORKS + 1


def test_a_table_of_another_device_is_refused():
    other = table()
    other.identity["threads"] += 1
    with pytest.raises(UserError, match="threads"):
        check_additivity(CONFIG, VOCABULARY, other, Runtime(seed=CONFIG.seed))


@pytest.mark.parametrize("attention", ["cached", "recompute"])
def test_a_check_on_this_machine(attention):
    """The figures have no bounds: the machine that runs tests is busy."""
    config = experiment(workload={"attention": attention}, profile_blocks={"rounds": 3, "networks": 9, "warmup": 1})
    report = check_additivity(config, VOCABULARY, table(config), Runtime(seed=CONFIG.seed))
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["attention"] == attention
    assert (report["n"], report["rounds"]) == (10, 3)
    assert all(row["p10_ms"] <= row["measured_ms"] <= row["p90_ms"] for row in report["networks"])
    assert all(row["measured_ms"] > 0 for row in report["networks"])
    assert -1 <= report["pearson_r"] <= 1


def test_a_check_of_decoding_on_this_machine():
    config = experiment(
        workload={"kinds": ["decode", "segment"], "decode": {"batch": 1, "mem_len": 16}},
        profile_blocks={"rounds": 3, "networks": 9, "warmup": 1},
    )
    report = check_additivity(config, VOCABULARY, table(config), Runtime(seed=CONFIG.seed))
    assert (report["attention"], report["execution"], report["n"]) == ("cached", "decode", 10)
