"""Evaluation of untrained networks: the parts of eval.json."""

from __future__ import annotations

import dataclasses
import json
import math

import jsonschema
import numpy as np
import pytest
import torch
from made_up import chosen
from toy import MS, ROOT, experiment, latency_table_of_this_machine

from planer.config import ClusterConfig
from planer.conversion.experts import split
from planer.conversion.routers import initialise_routers, with_routers
from planer.conversion.thresholds import ThresholdChoice
from planer.data.texts import Texts
from planer.errors import UserError
from planer.evaluation.evaluate import Baseline, Subject, _search_cost, config_hash, evaluate
from planer.evaluation.summary import summary_line
from planer.files import write_json
from planer.git import git_commit
from planer.latency.networks import random_model
from planer.latency.table import LatencyTable
from planer.models import LanguageModel, save
from planer.runtime import Runtime
from planer.specs import Architecture

pytestmark = pytest.mark.slow
SCHEMA = json.loads((ROOT / "planer/schemas/eval.schema.json").read_text())
CPU = torch.device("cpu")
VOCAB_SIZE = 40

CONFIG = experiment(
    device="cpu",
    dtype="float32",
    workload={"kinds": ["segment", "decode"], "decode": {"batch": 2, "mem_len": 40}},
    evaluate={"batch": 4, "tgt_len": 64, "mem_len": 48, "taus": [0.5, 0.2], "latency_rounds": 3},
)
BASELINE = CONFIG.model.architecture(VOCAB_SIZE, CONFIG.patterns.baseline)
STAGES = {"retrain": {"seconds": 3.0}, "cluster_experts": {"scatter": 0.5}}
SELECTION = {
    "variant": "target_0.6",
    "chosen_by": "solver",
    "source": "solver",
    "scored_by": "replace_one",
    "status": "optimal",
    "gap": 0.0,
    "target": 0.6,
    "score": 0.03,
    "used": {"target": 0.55, "params": 1.2},
    "rounds": [{"options": [1, 3, 5, 0], "supernet_nll": 2.4}, {"options": [1, 3, 5, 4], "supernet_nll": 2.3}],
    "closed_loop": [
        {"budget": 0.6, "estimated": 0.58, "measured": 0.64, "options": [1, 3, 5, 0]},
        {"budget": 0.54, "estimated": 0.53, "measured": 0.6, "options": [1, 3, 5, 4]},
    ],
    "candidates": [
        {
            "pattern": "(f)x4",
            "source": "solver",
            "status": "optimal",
            "score": -0.1,
            "estimated": 0.59,
            "measured": None,
            "supernet_nll": 2.5,
        }
    ],
    "score_options": list(CONFIG.design_space),
    "estimated": 0.53,
}
CONTROL = {"chosen_by": "random", "source": "random", "target": 0.6, "used": {"target": 0.59}, "estimated": 0.59}
CONTROL |= {"candidates": []}
PATTERN = {"chosen_by": "pattern", "target": None, "estimated": 1.0}


@pytest.fixture(scope="module")
def tokens() -> Texts:
    text = np.random.default_rng(0).integers(0, VOCAB_SIZE, 3000, dtype=np.uint8)
    return Texts(VOCAB_SIZE, text[:2000], text[2000:2400], text[2400:])


def table(vocab_size: int = VOCAB_SIZE) -> LatencyTable:
    """Made-up latencies with the identity of this machine."""
    return latency_table_of_this_machine(CONFIG, vocab_size)


def evaluated(folder, text, variant: str, architecture: Architecture, **overlay) -> dict:
    """Evaluate an untrained network; of the stages only the split of its dense layers is real."""
    dense = random_model(architecture, Runtime(seed=0))
    converted, _, metrics = split(dense, ClusterConfig(expert_size=8, restarts=1, max_iterations=5), seed=0)
    converted = with_routers(converted, 8)
    initialise_routers([block.router for block in converted.dynamic_blocks()], torch.Generator().manual_seed(0))
    choice = ThresholdChoice(dense, text.valid, CONFIG.evaluate, Runtime())(converted)
    networks: dict[str, LanguageModel] = {"retrained": dense, "sparsified": dense, "routed": converted}
    for name, network in networks.items():
        save(network, folder / variant / name)
    stages = STAGES | {"cluster_experts": metrics, "routers": choice} | overlay.get("stages", {})
    folders = tuple(folder / variant / name for name in networks)
    subject = Subject("toy", variant, folders, overlay.get("selection", PATTERN), stages)
    against = Baseline(BASELINE, overlay.get("baseline_evaluation"), 5.0)
    result = evaluate(CONFIG, subject, against, overlay.get("table", table()), text, Runtime(seed=7))
    jsonschema.Draft202012Validator(SCHEMA).validate(result)
    write_json(folder / variant / "eval.json", result)
    return result


@pytest.fixture(scope="module")
def baseline(tmp_path_factory, tokens) -> dict:
    return evaluated(tmp_path_factory.mktemp("evaluate"), tokens, "baseline", BASELINE)


@pytest.fixture(scope="module")
def searched(tmp_path_factory, tokens, baseline) -> dict:
    architecture = CONFIG.model.architecture(VOCAB_SIZE, "s1fm2i")
    folder = tmp_path_factory.mktemp("evaluate")
    notes = {
        "selection": SELECTION,
        "stages": {"search": {"seconds": 10.0, "entropy": 1.0}, "choice": {"seconds": 2.5}},
    }
    return evaluated(folder, tokens, "target_0.6", architecture, baseline_evaluation=baseline, **notes)


def test_architecture_is_the_one_before_conversion(searched):
    assert [block["option"] for block in searched["architecture"]["blocks"]] == [
        "attention_1", "feed_forward", "moe_top2", "skip",
    ]  # fmt: skip
    expected = CONFIG.model.architecture(VOCAB_SIZE, "s1fm2i")
    assert searched["architecture"]["params"] == expected.params() > expected.active_params()
    assert searched["architecture"]["active_params"] == expected.active_params()


def test_quality_by_both_protocols(searched):
    final, train = searched["quality"]["final"], searched["quality"]["train"]
    assert (final["mem_len"], final["same_length"]) == (48, True)
    assert (train["tgt_len"], train["mem_len"], train["same_length"]) == (32, 32, False)
    assert final["valid"]["tokens"] == 400 - 4 and final["test"]["tokens"] == 600 - 4
    for score in (final["valid"], final["test"], train["valid"], train["test"]):
        assert score["bpc"] == pytest.approx(score["nll"] / math.log(2))
        assert score["nll"] == pytest.approx(math.log(VOCAB_SIZE), rel=0.2), "weights are random"


def test_latency_against_baseline_and_table(searched):
    rows = {row["attention"]: row for row in searched["latency"] if row["execution"] == "eager"}
    assert list(rows) == ["cached", "recompute"]
    assert [row["headline"] for row in rows.values()] == [True, False]
    for mode, row in rows.items():
        assert 0 < row["p10_ms"] <= row["median_ms"] <= row["p90_ms"] and row["n"] == 3
        assert row["speed_up"] == row["baseline_median_ms"] / row["median_ms"]
        factor = 2 if mode == "recompute" else 1
        assert (
            row["table_ms"]
            == MS["embedding_and_head"] + factor * MS["attention_1"] + MS["feed_forward"] + MS["moe_top2"]
        )
        assert row["baseline_table_ms"] == MS["embedding_and_head"] + 2 * (
            factor * MS["attention_2"] + MS["feed_forward"]
        )
        reference = {(other["attention"], other["execution"]): other for other in searched["baseline"]["latency"]}
        baseline = reference[mode, "eager"]
        assert baseline["median_ms"] == row["baseline_median_ms"]
    headline = rows["cached"]
    assert searched["target"]["requested"] == 0.6
    assert searched["target"]["estimated"] == pytest.approx(12.5 / 15)
    assert searched["target"]["measured"] == pytest.approx(1 / headline["speed_up"])


def test_decoding_and_segments_are_measured(searched):
    (row,) = (row for row in searched["latency"] if row["execution"] == "decode")
    assert (row["batch"], row["tgt_len"], row["mem_len"], row["attention"]) == (2, 1, 40, "cached")
    assert not row["headline"]
    assert row["tokens_per_second"] == pytest.approx(2000 / row["median_ms"])
    assert row["speed_up"] == row["baseline_median_ms"] / row["median_ms"]
    segment = next(row for row in searched["latency"] if row["headline"])
    assert segment["tokens_per_second"] == pytest.approx(1000 * 4 * 32 / segment["median_ms"])


def test_target_has_its_slack_and_every_measured_round(searched):
    target = searched["target"]
    assert target["slack"] == pytest.approx((0.6 - target["estimated"]) / 0.6)
    assert [tuple(entry.values()) for entry in target["rounds"]] == [(0.6, 0.58, 0.64), (0.54, 0.53, 0.6)]


def test_selection_names_the_blocks_of_the_incumbents(searched):
    selection = searched["selection"]
    assert selection["incumbents"] == [
        {"blocks": ["attention_1", "feed_forward", "moe_top2", "skip"], "supernet_nll": 2.4},
        {"blocks": ["attention_1", "feed_forward", "moe_top2", "moe_top1"], "supernet_nll": 2.3},
    ]
    same = ("chosen_by", "source", "scored_by", "status", "gap", "used", "candidates")
    assert {name: selection[name] for name in same} == {name: SELECTION[name] for name in same}


def test_search_is_compared_with_one_training_of_the_baseline(searched):
    assert searched["search"] == {
        "stages": {"search": 10.0, "choice": 2.5}, "seconds": 12.5, "baseline_seconds": 5.0, "ratio": 2.5, "bar": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "total"),
    [({}, None), ({"search": 10}, None), ({"teacher": 3, "retrain": 40}, None), ({"choice": 2.5}, 2.5)]
    + [({"search": 10, "choice": 2.5, "teacher": 3, "retrain": 40}, 15.5)],
)
def test_the_cost_of_a_search_is_the_sum_of_its_stages(seconds, total):
    found = _search_cost(seconds, 5)
    assert (found and (found["seconds"], found["ratio"])) == (total and (total, total / 5))


def test_a_random_control_has_a_target_but_no_search(tmp_path, tokens):
    found = evaluated(
        tmp_path, tokens, "random_0.6_1", CONFIG.model.architecture(VOCAB_SIZE, "s1iff"), selection=CONTROL
    )
    assert found["target"]["requested"] == 0.6 and found["target"]["rounds"] == []
    assert found["search"] is None
    assert found["selection"] == {
        "chosen_by": "random", "source": "random", "scored_by": None, "status": None, "gap": None,
        "used": {"target": 0.59}, "incumbents": [], "candidates": [], "path": [],
    }  # fmt: skip


def test_flops(searched):
    work, flops = CONFIG.workload, searched["flops"]
    assert flops["counted"] == flops["closed_form"]
    expected = BASELINE.flops(work.batch, work.tgt_len, work.mem_len, "cached")
    assert flops["baseline"] == expected and flops["baseline_ratio"] == flops["closed_form"] / expected


def test_conversion_and_sweep(searched):
    conversion, rows = searched["conversion"], searched["dynamic_k"]
    assert conversion["converted_layers"] == 1 and conversion["blocks"] == [1]
    assert conversion["num_experts"] == [CONFIG.model.d_inner // 8] and conversion["reason"] is None
    assert [row["tau"] for row in rows] == [0.0, 0.2, 0.5]
    assert conversion["tau0_difference"] == pytest.approx(0, abs=1e-5)
    assert conversion["sparsified"] == {split: searched["quality"]["final"][split] for split in ("valid", "test")}
    assert rows[0]["test"]["nll"] - conversion["sparsified"]["test"]["nll"] == conversion["tau0_difference"]
    flops = [row["converted_flops"] for row in rows]
    assert flops == sorted(flops, reverse=True) and flops[2] < flops[0]
    assert conversion["expert_size"] == [8] and conversion["dense_latency"]["n"] == rows[0]["latency"]["n"] == 3
    dense = searched["quality"]["final"] | {"latency": conversion["dense_latency"]}
    assert conversion["chosen"] == chosen(rows, dense, searched["tolerance"])
    assert searched["tolerance"] == CONFIG.evaluate.tolerance == 0.01
    routers = rows[0]["converted_flops"] - 4 * 32 * CONFIG.model.d_inner
    assert rows[0]["network_flops"] == searched["flops"]["closed_form"] + routers


def test_segments_are_those_of_the_test_split_by_the_final_protocol(searched, baseline):
    segments, test = searched["quality"]["segments"], searched["quality"]["final"]["test"]
    assert sum(segments["tokens"]) == test["tokens"]
    assert np.average(segments["nll"], weights=segments["tokens"]) == pytest.approx(test["nll"], rel=1e-12)
    assert segments["tokens"] == baseline["quality"]["segments"]["tokens"]
    assert searched["baseline"]["quality"]["segments"] == baseline["quality"]["segments"]


def test_summary_is_relative_to_the_baseline_of_the_same_measurement(searched, baseline):
    summary, conversion = searched["summary"], searched["conversion"]
    reference = baseline["quality"]["final"]["test"]["nll"]
    assert summary["dense"] == {
        "speed_up": conversion["baseline_latency"]["median_ms"] / conversion["dense_latency"]["median_ms"],
        "nll_ratio": searched["quality"]["final"]["test"]["nll"] / reference,
    }
    row = next(row for row in searched["dynamic_k"] if row["tau"] == conversion["chosen"]["tau"])
    assert summary["converted"] == {
        "tau": row["tau"],
        "speed_up": conversion["baseline_latency"]["median_ms"] / row["latency"]["median_ms"],
        "nll_ratio": row["test"]["nll"] / reference,
    }
    assert summary["dense"]["speed_up"] != searched["latency"][0]["speed_up"], "they are two measurements"


def test_summary_of_the_baseline_is_relative_to_itself(baseline):
    assert baseline["summary"]["dense"] == {"speed_up": 1, "nll_ratio": 1}
    assert baseline["conversion"]["baseline_latency"] == baseline["conversion"]["dense_latency"]


def test_a_repeat_of_the_baseline_is_its_own_baseline(tmp_path, tokens):
    found = evaluated(tmp_path, tokens, "baseline-seed1", BASELINE)
    assert found["summary"]["dense"] == {"speed_up": 1, "nll_ratio": 1}
    assert found["baseline"]["quality"] == found["quality"]


def test_summary_lines(searched):
    entry = {"speed_up": 1.964, "nll_ratio": 1.0031}
    values = searched | {"summary": {"dense": entry, "converted": None}}
    assert summary_line(values) == (
        "dense, 1.96 times the baseline's speed at 100.3% of its nll; no threshold was chosen"
    )
    values["summary"]["converted"] = {"tau": 0.1, "speed_up": 2.1, "nll_ratio": None}
    assert summary_line(values).endswith("; converted, tau = 0.1, 2.10 times the baseline's speed")


def test_baseline_is_compared_with_itself(baseline, searched):
    assert baseline["target"] is baseline["selection"] is baseline["search"] is None
    assert all(row["speed_up"] == 1 for row in baseline["latency"])
    assert baseline["baseline"]["quality"] == baseline["quality"] == searched["baseline"]["quality"]
    assert baseline["baseline"]["params"] == BASELINE.params() == searched["baseline"]["params"]
    assert searched["reference"] == baseline["reference"]
    assert searched["reference"]["bigram"]["tokens"] == 600 - 1


def test_provenance(searched):
    found = searched["provenance"]
    assert found["seed"] == 7 and found["config_hash"] == config_hash(CONFIG)
    assert found["wall_seconds"].keys() == {"search", "choice", "retrain", "evaluate"}
    assert found["wall_seconds"]["search"] == 10.0
    assert found["git_commit"] == git_commit() != ""
    assert config_hash(experiment(seed=3)) != config_hash(CONFIG)


def test_a_network_without_dense_layers(tmp_path, tokens):
    architecture = CONFIG.model.architecture(VOCAB_SIZE, "s1iii")
    found = evaluated(tmp_path, tokens, "lts_0.3", architecture, selection=SELECTION | {"scored_by": "params"})
    assert found["conversion"]["converted_layers"] == 0 and found["conversion"]["chosen"] is None
    assert "no feed-forward layer" in found["conversion"]["reason"]
    assert [row["tau"] for row in found["dynamic_k"]] == [0.0]
    assert found["dynamic_k"][0]["network_flops"] == found["flops"]["closed_form"]
    assert (
        found["baseline"]["quality"] is found["summary"]["converted"] is found["summary"]["dense"]["nll_ratio"] is None
    )


def test_table_of_another_network_is_refused(tmp_path, tokens):
    with pytest.raises(UserError, match="vocab_size 99.*vocab_size 40"):
        evaluated(tmp_path, tokens, "baseline", BASELINE, table=table(vocab_size=99))


def test_text_that_is_too_short_is_refused(tmp_path, tokens):
    with pytest.raises(UserError, match="200 tokens, timing needs 4 excerpts of 65"):
        evaluated(tmp_path, dataclasses.replace(tokens, test=tokens.test[:200]), "baseline", BASELINE)
