"""The latency table: contents, identity, and costs from timed stacks."""

from __future__ import annotations

import dataclasses
import math
import re

import numpy as np
import pandas as pd
import pytest
import torch
from toy import experiment

from planer.errors import UserError
from planer.files import write_parquet
from planer.latency import networks as networks_module
from planer.latency import profile as profile_module
from planer.latency.options import measured_options
from planer.latency.profile import profile_blocks
from planer.latency.routings import ROUTINGS
from planer.latency.table import COLUMNS, LatencyTable, identity
from planer.runtime import Runtime
from planer.specs import Attention, DynamicMoE, FeedForward, MoE

CPU = torch.device("cpu")
CONFIG = experiment(profile_blocks={"warmup": 1, "max_seconds": 20.0})
VOCABULARY = 50
MS = {
    "attention_1": 1.1,
    "attention_2": 2.3,
    "feed_forward": 0.7,
    "feed_forward_x4": 2.6,
    "moe_top1": 0.9,
    "moe_top2": 1.7,
}
MODES = {"cached": 1.0, "recompute": 1.5}
ROUTED = {None: 1.0, "balanced": 1.0, "skewed": 1.25, "one": 2.0}


def true_ms(option: str, attention: str, routing: str | None = None) -> float:
    return MS[option] * (MODES[attention] if option.startswith("attention") else 1.0) * ROUTED[routing]


def fake_measure(fixed_ms=0.4, noise=0.0, negative=(), negative_calls=0, log=None):
    """A fake device on which latencies add up; ``negative`` options have negative costs in the first calls."""
    generator = np.random.default_rng(0)
    calls = {"blocks": 0}

    def measure(callables, rounds, warmup, seed, max_seconds, device, description):
        if log is not None:
            log.append((description, rounds, sorted(callables)))
        timed = description.startswith(("profile: blocks", "profile: negative"))
        calls["blocks"] += timed
        rows = []
        for number in range(rounds):
            drift = 1 + 0.5 * number  # a device that slows down from round to round
            for name in callables:
                parts = re.fullmatch(r"(\w+), (\w+)(?:, (skewed|one))?, (\d+) copies", name)
                ms = fixed_ms
                if parts:
                    option, attention, routing, count = *parts.groups()[:3], int(parts[4])
                    falling = option in negative and not routing and timed and calls["blocks"] <= negative_calls
                    ms += count * true_ms(option, attention, routing) * (-0.01 if falling else 1) + drift
                rows.append((name, number, ms + noise * generator.normal()))
        return pd.DataFrame(rows, columns=["name", "round", "ms"])

    return measure


def table() -> LatencyTable:
    """Batch 4, the workload's, and 8, which takes three times as long; compiled takes a tenth of the time."""
    sides = identity(Runtime(), CONFIG.workload, CONFIG.model, VOCABULARY)
    shared = {key: sides[key] for key in ("device", "dtype", "tgt_len", "mem_len")}
    frame = pd.DataFrame(
        [
            {"option": option, "attention": attention, "n": 9, "batch": batch, "execution": execution}
            | {"routing": routing}
            | dict.fromkeys(
                ("median_ms", "p10_ms", "p90_ms"),
                ms * slower * faster * ROUTED[routing] * (scale if option.startswith("attention") else 1),
            )
            | shared
            for batch, slower in ((4, 1.0), (8, 3.0))
            for execution, faster in (("compiled", 0.1), ("eager", 1.0))
            for option, ms in {"embedding_and_head": 0.5, "skip": 0.0, **MS}.items()
            for attention, scale in MODES.items()
            for routing in (("one", "balanced", "skewed") if option.startswith("moe") else ("balanced",))
        ]
    )
    return LatencyTable(frame, sides, {"copies": 4, "stacks_ms": {mode: MS for mode in MODES}})


def test_a_table_survives_a_round_trip(tmp_path):
    path = tmp_path / "table.parquet"
    table().save(path)
    loaded = LatencyTable.load(path)
    assert list(loaded.rows.columns) == list(COLUMNS)
    pd.testing.assert_frame_equal(loaded.rows, table().rows[list(COLUMNS)])
    assert (loaded.identity, loaded.notes, loaded.path) == (table().identity, table().notes, str(path))
    loaded.check(table().identity)


def test_the_identity_of_a_table():
    sides = table().identity
    assert sides["driver"] == "none"
    assert sides["torch"] == torch.__version__
    assert sides["threads"] == torch.get_num_threads()
    assert sides["dtype"] == "float32"
    assert sides["device"]
    assert sides["execution"] == "eager"
    shapes = {"batch": 4, "tgt_len": 32, "mem_len": 32, "d_model": 32, "num_heads": 2, "d_inner": 64, "num_experts": 4}
    assert shapes.items() <= sides.items()
    assert (sides["norm"], sides["vocab_size"]) == ("post", 50)


@pytest.mark.parametrize(
    ("key", "value"),
    [("device", "Toy 3000"), ("threads", 96), ("dtype", "bfloat16"), ("mem_len", 640), ("execution", "compiled")],
)
def test_a_table_of_another_device_or_shape_is_refused(tmp_path, key, value):
    path = tmp_path / "results/demo/latency_table.parquet"
    table().save(path)
    loaded = LatencyTable.load(path)
    with pytest.raises(UserError) as error:
        loaded.check(loaded.identity | {key: value})
    assert str(error.value) == (
        f"{path} was measured with {key} {loaded.identity[key]}, but this run has {key} {value}; "
        "make it anew: snakemake --cores all --force results/demo/latency_table.parquet"
    )


def test_an_identity_of_another_version_is_refused():
    with pytest.raises(UserError, match="clock 3 GHz.*clock unknown|clock unknown.*clock 3 GHz"):
        table().check(table().identity | {"clock": "3 GHz"})


def test_unreadable_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        LatencyTable.load(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("no Parquet")
    with pytest.raises(UserError, match="text.parquet is no readable Parquet table"):
        LatencyTable.load(tmp_path / "text.parquet")
    write_parquet(tmp_path / "bare.parquet", table().rows)
    with pytest.raises(UserError, match="bare.parquet is no valid JSON"):
        LatencyTable.load(tmp_path / "bare.parquet")
    write_parquet(tmp_path / "narrow.parquet", table().rows[["option"]], {"identity": "{}", "notes": "{}"})
    with pytest.raises(UserError, match="lacks the column device"):
        LatencyTable.load(tmp_path / "narrow.parquet")


def test_lookup_of_an_unknown_option_names_the_known_ones():
    assert table().lookup("attention_2", "cached") == 2.3
    assert table().lookup("attention_2", "recompute") == pytest.approx(3.45)
    with pytest.raises(UserError, match="no 'attention_7' with cached attention; it has: embedding_and_head, skip, "):
        table().lookup("attention_7", "cached")


def test_lookup_defaults_to_the_workload_and_balanced_routing():
    assert table().lookup("moe_top1", "cached") == table().lookup("moe_top1", "cached", 4) == MS["moe_top1"]
    assert table().lookup("moe_top1", "cached", 8) == 3 * MS["moe_top1"]
    compiled = dataclasses.replace(table(), identity=table().identity | {"execution": "compiled"})
    assert compiled.lookup("moe_top2", "recompute", 8) == pytest.approx(0.3 * MS["moe_top2"])
    with pytest.raises(UserError, match="no batch 7 with eager execution; it has: 4, 8; profile_blocks.batches"):
        table().lookup("moe_top1", "cached", 7)


def test_headline_rows_agree_with_lookup():
    rows = table().headline_rows
    assert not rows.duplicated(["option", "attention"]).any()
    assert len(rows) == 2 * (2 + len(MS))
    assert all(row.median_ms == table().lookup(row.option, row.attention) for row in rows.itertuples())


def test_an_estimate_at_another_batch():
    network = CONFIG.model.architecture(VOCABULARY, "sfm1")
    assert table().estimate(network, "recompute", 8) == pytest.approx(3 * table().estimate(network, "recompute"))
    with pytest.raises(UserError, match="no batch 16"):
        table().estimate(network, "recompute", 16)


def test_an_estimate_is_the_exact_sum_in_any_order():
    blocks = [CONFIG.model.option(name) for name in [*MS, "skip"] * 4]
    costs = [0.5, *[true_ms(name, "recompute") for name in MS for _ in range(4)]]
    for generator in map(np.random.default_rng, range(3)):
        architecture = CONFIG.model.architecture(VOCABULARY, tuple(generator.permutation(blocks)))
        assert table().estimate(architecture, "recompute") == math.fsum(costs)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"vocab_size": 99}, "vocab_size 50, but the network has 99"),
        ({"d_model": 64}, "d_model 32, but the network has 64"),
        ({"norm": "pre"}, "norm post, but the network has pre"),
        ({"blocks": (FeedForward(16384),)}, "d_inner 64, but the network has 16384"),
        ({"blocks": (MoE(64, 16, 1),)}, "num_experts 4, but the network has 16"),
        ({"blocks": (DynamicMoE(64, 8, 4),)}, "no 'dynamic_moe'"),
    ],
)
def test_networks_of_other_shapes_are_not_estimated(change, named):
    architecture = dataclasses.replace(CONFIG.model.architecture(VOCABULARY, "sf"), **change)
    with pytest.raises(UserError, match=named):
        table().estimate(architecture, "cached")


def test_measured_options_cover_design_spaces_and_patterns():
    methods = {"isoparam": ["skip", "feed_forward_x4"], "par_search": ["skip", "attention_2"]}
    config = experiment(
        design_space=["skip", "attention_1", "moe_top2"], search_methods=methods, patterns={"baseline": "(sf)x2i"}
    )
    wide = FeedForward(256, 4)
    assert measured_options(config) == (Attention(1, 16), MoE(64, 4, 2), wide, Attention(2, 16), FeedForward(64))


def test_costs_are_marginal(monkeypatch):
    """Fixed costs and drift between rounds cancel in differences within a round."""
    monkeypatch.setattr(profile_module, "measure", fake_measure())
    result = profile_blocks(CONFIG, VOCABULARY, Runtime(seed=CONFIG.seed))
    for attention in MODES:
        assert result.lookup("embedding_and_head", attention) == pytest.approx(0.4)
        for option in MS:
            assert result.lookup(option, attention) == pytest.approx(true_ms(option, attention))
    assert result.notes["control_drift"] == pytest.approx(0.0)
    assert result.notes["spread"] == pytest.approx(0.0)
    middle = 0.4 + 2.0  # two copies, third of five rounds
    assert result.notes["stacks_ms"]["recompute"]["attention_2"] == pytest.approx(middle + 2 * 1.5 * 2.3)
    assert result.notes["stacks_ms"]["recompute"]["moe_top1"] == pytest.approx(middle + 2 * 0.9)
    assert (result.notes["copies"], result.notes["rounds"]) == (2, 5)


def test_mixtures_have_rows_for_other_routings(monkeypatch):
    monkeypatch.setattr(profile_module, "measure", fake_measure())
    rows = profile_blocks(CONFIG, VOCABULARY, Runtime(seed=CONFIG.seed)).rows
    rows = rows.set_index(["option", "attention", "routing"])["median_ms"]
    for attention in MODES:
        for routing in ("balanced", "skewed", "one"):
            for option in ("moe_top1", "moe_top2"):
                assert rows[option, attention, routing] == pytest.approx(true_ms(option, attention, routing))
    others = {option for option, _, routing in rows.index if routing != "balanced"}
    assert others == {"moe_top1", "moe_top2"}


def test_more_batches_and_executions(monkeypatch):
    """All combinations are measured, the workload's first, each with its own blocks and memories."""
    made, log = [], []

    class Recorded(profile_module.Pool):
        def __init__(self, architecture, copies, workload, *arguments, **options):
            made.append((workload.batch, workload.execution))
            eager = dataclasses.replace(workload, execution="eager")  # compiling takes a minute
            super().__init__(architecture, copies, eager, *arguments, **options)

    monkeypatch.setattr(profile_module, "Pool", Recorded)
    monkeypatch.setattr(profile_module, "measure", fake_measure(log=log))
    config = experiment(profile_blocks={"batches": [2, 4, 1], "executions": ["eager", "compiled"]})
    result = profile_blocks(config, VOCABULARY, Runtime(seed=CONFIG.seed))
    expected = [(batch, execution) for execution in ("eager", "compiled") for batch in (4, 2, 1)]
    assert made == expected == list(dict.fromkeys(zip(result.rows["batch"], result.rows["execution"], strict=True)))
    assert [entry[0] for entry in log].count("profile: blocks") == 6
    assert len(result.rows) == 6 * len(profile_blocks(CONFIG, VOCABULARY, Runtime(seed=CONFIG.seed)).rows)
    assert {result.lookup("moe_top1", "cached", batch) for batch in (1, 2, 4)} == {result.lookup("moe_top1", "cached")}
    assert result.identity["batch"] == 4
    assert (result.notes["batch"], result.notes["execution"]) == (4, "eager")
    assert [(note["batch"], note["execution"]) for note in result.notes["others"]] == expected[1:]


@pytest.mark.parametrize("kinds", [["segment", "decode"], ["decode", "segment"]])
def test_segments_and_decoding_in_one_table(kinds, monkeypatch, tmp_path):
    """Lookup is of the first kind; decoding has only cached attention and balanced routing."""
    monkeypatch.setattr(profile_module, "measure", fake_measure())
    config = experiment(workload={"kinds": kinds, "decode": {"batch": 2, "mem_len": 9}})
    result = profile_blocks(config, VOCABULARY, Runtime(seed=CONFIG.seed))
    result.save(tmp_path / "table.parquet")
    result = LatencyTable.load(tmp_path / "table.parquet")
    result.check(identity(Runtime(), config.workload, config.model, VOCABULARY))
    decoding = result.rows[result.rows["execution"] == "decode"]
    assert set(zip(*(decoding[key] for key in ("batch", "tgt_len", "mem_len")), strict=True)) == {(2, 1, 9)}
    assert set(decoding["attention"]) == {"cached"} and set(decoding["routing"]) == {"balanced"}
    alone = profile_blocks(CONFIG, VOCABULARY, Runtime(seed=CONFIG.seed)).rows
    assert len(result.rows) - len(decoding) == len(alone), "segments have the same rows as alone"
    assert set(decoding["option"]) == set(alone["option"])
    assert set(result.headline_rows["execution"]) == {"decode" if kinds[0] == "decode" else "eager"}
    for execution, batch in (("decode", 2), ("eager", 4)):
        assert result.lookup("moe_top2", "cached", batch, execution) == pytest.approx(MS["moe_top2"])
    with pytest.raises(UserError, match="no batch 4 with decode execution; it has: 2"):
        result.lookup("moe_top2", "cached", 4, "decode")


def test_segments_are_always_measured():
    with pytest.raises(UserError, match=r"workload\.kinds: \['decode'\] lacks segment.*write \[decode, segment\]"):
        experiment(workload={"kinds": ["decode"]})


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
@pytest.mark.parametrize(
    "overlay", [{"workload": {"execution": "graph"}}, {"profile_blocks": {"executions": ["graph"]}}]
)
def test_graphs_need_cuda(overlay, monkeypatch):
    monkeypatch.setattr(profile_module, "measure", None)
    with pytest.raises(UserError, match="graph needs a CUDA device, but this run is on cpu; use eager or compiled"):
        profile_blocks(experiment(**overlay), VOCABULARY, Runtime(seed=CONFIG.seed))


def test_only_negative_costs_are_measured_again(monkeypatch):
    log: list = []
    monkeypatch.setattr(profile_module, "measure", fake_measure(negative=["moe_top1"], negative_calls=2, log=log))
    result = profile_blocks(CONFIG, VOCABULARY, Runtime(seed=CONFIG.seed))
    assert result.lookup("moe_top1", "cached") == pytest.approx(MS["moe_top1"])
    again = [entry for entry in log if entry[0].startswith("profile: negative")]
    stacks = ["moe_top1, cached, 2 copies", "moe_top1, cached, 4 copies"]
    assert [entry[1:] for entry in again] == [(10, stacks), (20, stacks)]


def test_a_cost_may_turn_positive_at_the_last_measurement(monkeypatch):
    negative_calls = profile_module.ATTEMPTS - 1
    monkeypatch.setattr(profile_module, "measure", fake_measure(negative=["moe_top1"], negative_calls=negative_calls))
    result = profile_blocks(CONFIG, VOCABULARY, Runtime(seed=CONFIG.seed))
    assert result.lookup("moe_top1", "cached") == pytest.approx(MS["moe_top1"])
    assert result.notes["stacks_ms"]["cached"]["attention_1"] > 0


def test_costs_that_stay_negative_are_refused(monkeypatch):
    monkeypatch.setattr(profile_module, "measure", fake_measure(negative=["moe_top1"], negative_calls=99))
    with pytest.raises(UserError, match=r"moe_top1 with cached attention costs -0\.009 ms .* device is too busy"):
        profile_blocks(CONFIG, VOCABULARY, Runtime(seed=CONFIG.seed))


@pytest.mark.parametrize(("max_seconds", "copies"), [(1.0, 2), (0.7, 1), (0.001, 1)])
def test_fewer_copies_where_rounds_would_take_too_long(monkeypatch, max_seconds, copies):
    """One block of each kind takes 38.7 ms, so a round of N = 2 about 230 ms; four must fit into max_seconds."""
    config = experiment(profile_blocks={"max_seconds": max_seconds})
    monkeypatch.setattr(profile_module, "measure", fake_measure())
    assert profile_blocks(config, VOCABULARY, Runtime(seed=CONFIG.seed)).notes["copies"] == copies


def test_fewer_copies_where_memory_is_short(monkeypatch):
    monkeypatch.setattr(profile_module, "measure", fake_measure())
    monkeypatch.setattr(networks_module, "POOL_BYTES", 1)
    assert profile_blocks(CONFIG, VOCABULARY, Runtime(seed=CONFIG.seed)).notes["copies"] == 1


def test_a_profile_of_this_machine():
    """Times have no bounds: the machine that runs tests is busy.  8 copies make costs larger than its noise."""
    config = experiment(profile_blocks={"warmup": 1, "max_seconds": 20.0, "copies": 8})
    result = profile_blocks(config, VOCABULARY, Runtime(seed=CONFIG.seed))
    rows = result.rows.set_index(["option", "attention", "routing"]).sort_index()
    assert set(rows.index) == {
        (option, attention, routing)
        for option in ("embedding_and_head", "skip", *MS)
        for attention in MODES
        for routing in (ROUTINGS if option.startswith("moe") else ROUTINGS[:1])
    }
    assert (rows.drop(index="skip")["median_ms"] > 0).all()
    assert (rows.loc["skip", ["median_ms", "p10_ms", "p90_ms"]] == 0).all(axis=None)
    assert (rows["p10_ms"] <= rows["median_ms"]).all() and (rows["median_ms"] <= rows["p90_ms"]).all()
    assert (rows["n"] >= 3).all()
    for option in ("embedding_and_head", "feed_forward", "moe_top1", "moe_top2"):
        assert rows.loc[(option, "cached")].equals(rows.loc[(option, "recompute")])
    assert set(rows["execution"]) == {"eager"}
    assert result.identity == identity(Runtime(), CONFIG.workload, CONFIG.model, VOCABULARY)
    for stacks_ms in result.notes["stacks_ms"].values():
        assert set(stacks_ms) == set(MS) and min(stacks_ms.values()) > 0
