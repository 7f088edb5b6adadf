"""Arms that do not fit their network are refused when the configuration is read."""

from __future__ import annotations

import json

import pytest
from toy import ROOT

from planer.config.arms import arm_values
from planer.config.strict_yaml import read_yaml
from planer.errors import UserError
from planer.parsing import merge
from planer.pretrained.adapters import adapters
from planer.pretrained.arms import check_arm

DEFAULTS = read_yaml(ROOT / "config/pretrained.yaml")
BERT = {"model_type": "bert", "hidden_size": 96, "intermediate_size": 384}
GPT2 = {"model_type": "gpt2", "n_embd": 20, "n_inner": None}
MLPS = {"projections": {"replace": ["query", "output"]}}


def check(keys: dict, **arm) -> None:
    task = {"kind": "text", "train": "my.txt"}
    changes = {"pretrained": {"config": keys}, "task": task, "arms": {"mine": {"method": "experts"} | arm}}
    check_arm(arm_values(merge(DEFAULTS, changes), "mine"), "mine")


@pytest.mark.parametrize(
    ("keys", "arm", "message"),
    [
        (GPT2, MLPS | {"method": "threshold"}, "replace is query, output; projections of gpt2 cannot be replaced: GPT"),
        (BERT | {"model_type": "qwen3"}, MLPS, "projections of qwen3 cannot be replaced: with grouped heads"),
        (BERT, {"cluster_experts": {"expert_size": 36}}, "expert_size is 36; .* a feed-forward layer, which are 384"),
        (GPT2, {"cluster_experts": {"expert_size": 32}}, "it must divide .* which are 80"),
        (BERT, MLPS | {"cluster_experts": {"expert_size": 32}}, "the neurons of the MLP of a projection, which are 48"),
        (BERT, MLPS | {"projections": {"replace": ["key"], "width_factor": 0.01}}, "of a projection, which are 1 "),
        (BERT, MLPS | {"evaluate": {"selectors": ["top_k"]}}, "top_k; none fits the routers; allowed: dynamic_k, abs"),
        (
            {"model_type": "bert"},
            {"train_routers": {"target": "moefication"}, "evaluate": {"selectors": ["dynamic_k", "cumulative"]}},
            "selectors is dynamic_k, cumulative; none fits the routers; allowed: absolute, top_k",
        ),
    ],
)
def test_an_arm_that_does_not_fit_is_refused(keys, arm, message):
    with pytest.raises(UserError, match=rf"^config: .*{message}.*\(arms.mine\)$") as refused:
        check(keys, **arm)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("keys", "arm"),
    [
        (BERT, MLPS),
        (BERT, MLPS | {"evaluate": {"selectors": ["top_k", "absolute"]}}),
        (BERT | {"intermediate_size": 48}, MLPS | {"evaluate": {"selectors": ["top_k"]}}),
        (BERT, {"method": "threshold", "cluster_experts": {"expert_size": 36}}),
        (GPT2, {"cluster_experts": {"expert_size": 40}}),
        (GPT2 | {"n_inner": 36}, {"cluster_experts": {"expert_size": 36}}),
        ({"model_type": "gpt2"}, {"cluster_experts": {"expert_size": 5}}),
        (BERT | {"intermediate_size": "many"}, {"cluster_experts": {"expert_size": 36}}),
        ({"model_type": "unknown"}, MLPS),
    ],
)
def test_an_arm_that_fits_or_cannot_be_checked_passes(keys, arm):
    check(keys, **arm)


def test_the_folder_of_a_network_is_checked_where_it_can_be_read(tmp_path):
    changes = {"pretrained": {"folder": str(tmp_path)}, "task": {"kind": "text", "train": "my.txt"}}
    changes["arms"] = {"mine": {"method": "experts", "cluster_experts": {"expert_size": 36}}}
    values = arm_values(merge(DEFAULTS, changes), "mine")
    for text in (None, "[]", "{"):
        if text:
            (tmp_path / "config.json").write_text(text)
        check_arm(values, "mine")
    (tmp_path / "config.json").write_text(json.dumps(BERT))
    with pytest.raises(UserError, match="expert_size is 36"):
        check_arm(values, "mine")


def test_dense_arms_are_not_checked():
    changes = {"pretrained": {"config": GPT2}, "task": {"kind": "text", "train": "my.txt"}} | MLPS
    for arm in ("dense", "dense_continued"):
        check_arm(arm_values(merge(DEFAULTS, changes), arm), arm)


def test_sizes_of_two_families():
    assert adapters()["gpt2"].sizes(GPT2) == (20, 80) and adapters()["bert"].sizes(BERT) == (96, 384)
    assert adapters()["bert"].sizes({"hidden_size": 96}) == (96, None) and adapters()["gpt2"].sizes({}) == (None, None)
