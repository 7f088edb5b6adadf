"""The estimate of training time, and the refusal of an experiment that takes too long."""

from __future__ import annotations

import dataclasses

import pytest
from toy import VOCAB_SIZE, experiment, latency_table

from planer.errors import UserError
from planer.latency.cost import check_hours, rescaled, training_hours, training_tokens

MS_PER_HOUR = 3.6e6
PROXIES = 2.0
"""Cost of proxy training in whole trainings: five candidates to a quarter, three of them on to a half."""
STUDENT = 4 * 23 * 20
"""Milliseconds of a student's training, with the teacher's forward pass."""
ONE_PROXY = {"candidates": {"proposers": {"shallow": 0, "edited": 0, "argmax": 0, "random": 0}, "rungs": [1.0e-9]}}
"""Almost no proxy training."""


def check(config) -> None:
    check_hours(training_hours(config, VOCAB_SIZE, latency_table()), "Toy Device 3000", config)


def hours(**overlay) -> dict[str, float]:
    """Hours by stage, where a call takes the same time at every batch size."""
    config, table = experiment(**overlay), latency_table()
    rows = table.rows.assign(batch=config.workload.batch)
    return training_hours(config, VOCAB_SIZE, dataclasses.replace(table, rows=rows))


def test_hours_in_closed_form():
    """Training has the workload's shape; recomputed, the baseline takes 1 + 2 (8 + 3) ms and the six options 25 ms."""
    weight_step, alpha_step = 3 * (1 + 4 * 25 / 6), 2 * (1 + 4 * 25)
    expected = {
        "search": (20 * (weight_step + 0.2 * 0.9 * alpha_step + 1.18 * 23) + PROXIES * STUDENT) / MS_PER_HOUR,
        "retrain": 3 * 23 * 30 / MS_PER_HOUR,
        "distill": STUDENT / MS_PER_HOUR,
        "sparsify": 2 * 4 * 23 * 10 / MS_PER_HOUR,
        "train_routers": 2 * 1 * 23 * 10 / MS_PER_HOUR,
    }
    expected["total"] = sum(expected.values())
    assert hours() == pytest.approx(expected)
    assert list(hours()) == list(expected)
    alone = hours(search={"distill": 0.0})["search"]
    assert alone == pytest.approx(expected["search"] - 20 * 1.18 * 23 / MS_PER_HOUR)  # the teacher runs in every step
    assert hours(workload={"attention": "recompute"}) == hours()  # training always recomputes


def test_hours_are_proportional_to_steps_and_tokens():
    plain = {"patterns": {"baseline": "(f)x4"}}
    once = hours(**plain)["retrain"]
    assert once == pytest.approx(3 * 13 * 30 / MS_PER_HOUR)
    for training, factor in (({"steps": 90}, 3), ({"batch": 12}, 3), ({"tgt_len": 64}, 2), ({"mem_len": 999}, 1)):
        assert hours(**plain, retrain=training)["retrain"] == pytest.approx(factor * once)
    assert hours(**plain, workload={"batch": 8})["retrain"] == pytest.approx(once / 2)


def test_attention_grows_with_its_flops():
    """With ten times the memory a query has 11 instead of 2 segments of keys."""
    longer = {"mem_len": 320}
    attention = experiment().model.option("attention_2")
    flops = [attention.flops(32, 4, 32, mem_len, "recompute") for mem_len in (32, 320)]
    expected = 3 * (1 + 2 * (8 * flops[1] / flops[0] + 3)) * 30 / MS_PER_HOUR
    assert hours(retrain=longer)["retrain"] == pytest.approx(expected)
    assert 3 < flops[1] / flops[0] < 11 / 2
    assert hours(search=longer, **ONE_PROXY)["search"] > 1.5 * hours(**ONE_PROXY)["search"]


def test_an_estimate_within_the_limit_passes():
    check(experiment())


@pytest.mark.parametrize(
    "dataset, small", [("enwik8", "enwik8-mini"), ("wikitext-103", "enwik8-mini"), ("enwik8-mini", "demo")]
)
def test_a_refusal_suggests_a_limit_and_a_smaller_experiment(dataset, small):
    config = experiment(data={"dataset": dataset}, retrain={"steps": 100_000_000}, max_hours=24.0, **ONE_PROXY)
    total = training_hours(config, VOCAB_SIZE, latency_table())["total"]
    with pytest.raises(UserError) as error:
        check(config)
    text = str(error.value)
    assert "\n" not in text and "about 1,916.7 h on Toy Device 3000" in text
    assert "retrain 1,916.7 h" in text and "more than max_hours = 24;" in text
    assert f"snakemake --cores 2 results/{small}/target_0.5/eval.json;" in text
    limit = int(text.rpartition("--config max_hours=")[2])
    assert limit > total
    check(experiment(retrain={"steps": 100_000_000}, max_hours=limit, **ONE_PROXY))


def test_an_earlier_estimate_is_scaled_by_the_tokens():
    before = hours(**ONE_PROXY)
    report = {"hours": before, "tokens": training_tokens(experiment(**ONE_PROXY))}
    more = {"search": {"steps": 60}, "retrain": {"batch": 8}, "sparsify": {"tgt_len": 16}}
    now = rescaled(report, experiment(**more, **ONE_PROXY))
    factors = {"search": 3, "retrain": 2, "sparsify": 0.5, "distill": 1, "train_routers": 1}
    expected = {name: factor * before[name] for name, factor in factors.items()}
    assert now == pytest.approx(expected | {"total": sum(expected.values())})


def test_replaced_projections_cost_a_training_more():
    replacing = {"projections": {"replace": True, "batch": 4, "tgt_len": 32, "mem_len": 32, "steps": 15}}
    added = {"projections": 2 * 3 * 23 * 15 / MS_PER_HOUR}
    assert hours(**replacing) == pytest.approx(hours() | added | {"total": hours()["total"] + added["projections"]})
    report = {"hours": hours(), "tokens": training_tokens(experiment())}
    later = rescaled(report, experiment(**replacing))["projections"]
    assert later == pytest.approx(report["hours"]["retrain"] / 2), "by an estimate without them, half as many steps"


def test_a_search_includes_its_proxy_trainings():
    config, without = experiment(), experiment(**ONE_PROXY)
    assert config.candidates.proxy_trainings == PROXIES
    tokens = training_tokens(config)
    assert tokens["search"] == training_tokens(without)["search"] + PROXIES * tokens["distill"]
    assert hours()["search"] - hours(**ONE_PROXY)["search"] == pytest.approx(PROXIES * hours()["distill"])


def test_a_supernet_counts_only_where_a_proposer_uses_it():
    cuts = {"proposers": {"solver": 0, "argmax": 0, "random": 0}, "rungs": [0.5]}
    assert hours(candidates=cuts)["search"] == pytest.approx(2 * 0.5 * STUDENT / MS_PER_HOUR)
    tokens = training_tokens(experiment(candidates=cuts))
    assert tokens["search"] == tokens["distill"]
    assert training_tokens(experiment(candidates=cuts | {"rungs": [1.0e-9]}))["search"] == 1, "later ones are scaled"


def test_a_refusal_of_minutes_suggests_one_hour():
    config = experiment(max_hours=0.001)
    with pytest.raises(UserError, match="max_hours = 0.001; .* --config max_hours=1$"):
        check(config)
