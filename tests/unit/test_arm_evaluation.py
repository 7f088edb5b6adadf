"""Evaluation of arms on tiny networks."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from planer.conversion.dynamic import dynamic_layers, make_dynamic, set_selector
from planer.conversion.neuron_threshold import calibrate
from planer.conversion.selectors import Selector
from planer.errors import UserError
from planer.evaluation.arms.evaluate import Arm, evaluate_arm
from planer.evaluation.arms.points import calibrate_norms, expert_points, threshold_points
from planer.evaluation.arms.sweep import score
from planer.evaluation.arms.timing import RANKED, speed_up, time_arm
from planer.files import check_shape
from planer.runtime import Runtime
from planer.tasks.make_task import TASKS
from planer.tasks.metrics import measure
from planer.tasks.pretrained_task import PretrainedTask

transformers = pytest.importorskip("transformers", reason="the package transformers is not installed")

from tests.unit.converted import EXPERT_SIZE, ROUTER_WIDTH, split  # noqa: E402
from tests.unit.pretrained_networks import KINDS, network  # noqa: E402
from tests.unit.tiny_pretrained import GROUPED, IDS, NEURONS, WIDTH, tiny  # noqa: E402
from tests.unit.tiny_tasks import LENGTHS, facts, tensors  # noqa: E402

EXPERTS = NEURONS // EXPERT_SIZE
CONFIG = SimpleNamespace(
    selectors=("dynamic_k", "top_k"),
    taus=(0.6, 0.0, 0.3),
    shares=(0.5, 1.0),
    bounds=("random", "oracle"),
    batches=(1, 2),
    tolerance=0.5,
    latency_rounds=3,
)


def task_of(family: str) -> PretrainedTask:
    kind = KINDS[family]
    splits = {split: tensors(kind, split) for split in LENGTHS}
    return TASKS[kind](facts(kind), splits, None, Runtime(seed=3))


def converted(family: str) -> nn.Module:
    """The same network with random routers."""
    return split(network(family))


@pytest.fixture(scope="module", params=KINDS)
def evaluated(request) -> tuple[str, dict]:
    family, model = request.param, converted(request.param)
    arm = Arm("toy", "d2dmoe", "experts", model, expert_points(model, CONFIG))
    return family, evaluate_arm(arm, network(family), task_of(family), CONFIG)


def rows_of(evaluation: dict, selector: str, bound: str | None = None) -> list[dict]:
    return [row for row in evaluation["rows"] if row["selector"] == selector and row["bound"] == bound]


def test_the_result_is_valid_by_the_schema(evaluated):
    _, evaluation = evaluated
    check_shape("eval.json", evaluation, "arm")
    assert [row["value"] for row in rows_of(evaluation, "dynamic_k")] == [0, 0.3, 0.6]
    assert [row["value"] for row in rows_of(evaluation, "top_k")] == [EXPERTS // 2, EXPERTS]


def test_with_all_experts_the_arm_equals_the_dense_network(evaluated):
    _, evaluation = evaluated
    (full,) = rows_of(evaluation, "all")
    assert full["test"] == evaluation["reference"]["test"] and full["valid"] == evaluation["reference"]["valid"]
    assert full["difference"] == {"value": 0, "low": 0, "high": 0}
    assert full["network_ratio"] == full["feed_forward_ratio"] == full["executed_share"] == 1


def test_all_experts_behind_a_router_cost_more_and_predict_the_same(evaluated):
    _, evaluation = evaluated
    for row in (rows_of(evaluation, "dynamic_k")[0], rows_of(evaluation, "top_k")[-1]):
        assert row["executed_share"] == 1 and row["feed_forward_ratio"] > 1
        assert row["test"]["nll"] == pytest.approx(evaluation["reference"]["test"]["nll"], rel=1e-4)


def test_flops_follow_the_executed_experts(evaluated):
    family, evaluation = evaluated
    rows = rows_of(evaluation, "dynamic_k")
    flops = [row["network_flops"] for row in rows]
    assert flops == sorted(flops, reverse=True) and flops[0] > flops[-1]
    for row in rows:
        shares = [layer["mean"] / EXPERTS for layer in row["layers"]]
        assert row["executed_share"] == pytest.approx(np.mean(shares))
        assert all(sum(layer["histogram"]) == pytest.approx(1) for layer in row["layers"])
        saved = evaluation["flops"]["total"] - row["network_flops"]
        assert saved == pytest.approx(evaluation["flops"]["feed_forward"] - row["feed_forward_flops"])


def test_bounds_have_the_values_and_shares_of_the_first_selector(evaluated):
    _, evaluation = evaluated
    rows = rows_of(evaluation, "dynamic_k")
    oracle = rows_of(evaluation, "dynamic_k", "oracle")
    random = rows_of(evaluation, "absolute", "random")
    assert [row["value"] for row in oracle] == [row["value"] for row in rows]
    assert {row["value"] for row in random} == {round(row["executed_share"], 4) for row in rows}
    assert all(row["valid"] is None for row in oracle + random)
    tokens = evaluation["task"]["tokens"] * evaluation["network"]["layers"] * EXPERTS
    for row in random:
        assert row["executed_share"] == pytest.approx(row["value"], abs=4 / np.sqrt(tokens))


def test_every_setting_and_the_dense_network_are_timed(evaluated):
    family, evaluation = evaluated
    phases = {"prefill", "decode"} if KINDS[family] == "text" else {"forward"}
    timed = {(row["batch"], row["phase"], row["selector"], row["value"]) for row in evaluation["latency"]}
    values = {("dense", None), ("all", 0), ("dynamic_k", 0), ("dynamic_k", 0.3), ("dynamic_k", 0.6)}
    chosen = evaluation["chosen"]
    values |= {(chosen["selector"], chosen["value"])} if chosen else set()
    assert timed == {(batch, phase, *value) for batch in (1, 2) for phase in phases for value in values}


@pytest.mark.parametrize("score", ["gate", "product"])
def test_thresholds_run_the_wanted_shares_and_save_the_products_after_the_score(score):
    model, task = network("llama"), task_of("llama")
    shares = SimpleNamespace(score=score, tokens=1_000, shares=(0.8, 0.4), allocation="uniform")
    points = threshold_points(model, calibrate(model, task, shares, seed=0))
    evaluation = evaluate_arm(Arm("toy", "threshold", "threshold", model, points), network("llama"), task, CONFIG)
    check_shape("eval.json", evaluation, "arm")
    full, *rows = evaluation["rows"]
    assert full["test"] == evaluation["reference"]["test"] and full["network_ratio"] == 1
    assert [(row["selector"], row["value"]) for row in rows] == [(score, 0.4), (score, 0.8)]
    skipped = 1 if score == "product" else 2
    for row in rows:
        assert row["executed_share"] == pytest.approx(row["value"], abs=0.15)
        ratio = (3 - skipped + skipped * row["executed_share"]) / 3 + 1 / (6 * WIDTH)
        assert row["feed_forward_ratio"] == pytest.approx(ratio)


def test_padding_is_not_counted():
    """A batch gives the counts of its texts alone."""
    model, task = converted("bert"), task_of("bert")
    set_selector(model, Selector("dynamic_k", 0.4))
    _, counter = score(model, task, "test", "")
    executed, tokens = dict.fromkeys(counter.names, 0), 0
    handles = [
        layer.register_forward_hook(lambda layer, x, y: seen.append(int(layer.mask(x[0].flatten(0, -2)).sum())))
        for layer in dynamic_layers(model)
    ]
    for batch in task.batches("test"):
        for ids, real in zip(batch["input_ids"], task.real(batch), strict=True):
            seen: list[int] = []
            with torch.no_grad():
                model(input_ids=ids[real][None])
            executed = {name: executed[name] + n for name, n in zip(executed, seen, strict=True)}
            tokens += int(real.sum())
    for handle in handles:
        handle.remove()
    assert counter.per_token() == pytest.approx({name: n / tokens for name, n in executed.items()})


def test_a_dense_arm_has_no_rows():
    dense = network("vit")
    evaluation = evaluate_arm(Arm("toy", "dense", "dense", dense, ()), dense, task_of("vit"), CONFIG)
    check_shape("eval.json", evaluation, "arm")
    assert evaluation["rows"] == [] and evaluation["chosen"] is None
    assert {row["selector"] for row in evaluation["latency"]} == {"dense"}


def test_dense_continued_is_compared_with_dense():
    dense, continued, task = network("gpt2"), network("gpt2"), task_of("gpt2")
    with torch.no_grad():
        continued.lm_head.weight.mul_(0.9)
    evaluation = evaluate_arm(Arm("toy", "dense_continued", "dense", continued, ()), dense, task, CONFIG)
    check_shape("eval.json", evaluation, "arm")
    own, fine = (
        {split: measure(task.metrics, score(model, task, split, "")[0]) for split in ("valid", "test")}
        for model in (continued, dense)
    )
    assert evaluation["quality"] == own
    assert evaluation["reference"] == {"variant": "dense"} | fine
    assert evaluation["difference"]["value"] == pytest.approx(own["test"]["nll"] - fine["test"]["nll"])


def test_the_oracle_of_absolute_runs_the_wanted_share():
    """Its thresholds are calibrated on training tokens; those of the routers stay as they are stored."""
    model, task = converted("gpt2"), task_of("gpt2")
    stored = [layer.quantiles.clone() for layer in dynamic_layers(model)]
    calibrate_norms(model, task)
    assert all(torch.equal(a.quantiles, b) for a, b in zip(dynamic_layers(model), stored, strict=True))
    set_selector(model, Selector("absolute", 0.5, "oracle"))
    _, counter = score(model, task, "train", "")
    assert np.mean(list(counter.shares().values())) == pytest.approx(0.5, abs=0.1)


def test_selectors_that_need_norms_are_left_out_where_routers_predict_none():
    model = tiny("gpt2")
    make_dynamic(model, EXPERT_SIZE, ROUTER_WIDTH, "moefication")
    assert [point.selector for point in expert_points(model, CONFIG)] == ["all", "top_k", "top_k"]
    with pytest.raises(UserError, match="allowed: absolute, top_k"):
        expert_points(model, SimpleNamespace(selectors=("dynamic_k",)))


@pytest.mark.parametrize("window", [4, 32])
def test_every_timed_call_of_a_decoder_reads_the_same_tokens(window):
    """Also where its cache keeps a window of the text only."""
    torch.manual_seed(0)
    model = transformers.MistralForCausalLM(transformers.MistralConfig(**GROUPED, **IDS, sliding_window=window)).eval()
    task, logits = task_of("gpt2"), []
    handle = model.register_forward_hook(lambda module, inputs, output: logits.append(output.logits[:, -1]))
    rows = time_arm(model, model, (), task, (1,), 3)
    handle.remove()
    assert [row["phase"] for row in rows] == ["prefill", "decode"]
    last = torch.stack(logits[1:])  # the first call fills the cache
    torch.testing.assert_close(last, last[:1].expand_as(last), rtol=1e-5, atol=1e-5)


def test_the_interval_of_a_speed_up_covers_the_median_in_most_samples():
    """At 95 %, about 20 of 400 intervals miss the median.  Few rounds have no interval."""
    random = np.random.default_rng(0)
    found = [speed_up(pd.Series(random.lognormal(0, 0.2, 20))) for _ in range(400)]
    missed = sum(not entry["low"] <= 1 <= entry["high"] for entry in found)
    assert missed <= 40 and all(entry["low"] <= entry["speed_up"] <= entry["high"] for entry in found)
    assert speed_up(pd.Series([1.0] * (RANKED - 1)))["low"] is None
