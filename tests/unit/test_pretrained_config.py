"""Experiments on pretrained networks: shipped ones are valid, and a mistake is one line."""

from __future__ import annotations

import pytest
from toy import ROOT

from planer.config.arms import (
    arm_name,
    arm_values,
    check_stage,
    dense_of,
    owner,
    reference_of,
    replaces_projections,
    reported_arms,
    training_batches,
)
from planer.config.paths import resolve
from planer.config.pretrained import PretrainedExperiment, pretrained_names
from planer.config.strict_yaml import read_experiment, read_yaml
from planer.errors import UserError
from planer.parsing import build, merge
from planer.pretrained.arms import check_arm

DEFAULTS = read_yaml(ROOT / "config/pretrained.yaml")
FILES = {file.stem: file for file in (ROOT / "config/experiments").glob("*.yaml")}
GIVEN = {"pretrained": {"folder": "net"}, "task": {"kind": "text", "train": "my.txt"}}


def values(**changes) -> dict:
    return merge(DEFAULTS, GIVEN, changes)


@pytest.mark.parametrize("name", pretrained_names(FILES))
def test_every_arm_of_a_shipped_experiment_is_valid(name):
    content = merge(DEFAULTS, *read_experiment(name, FILES))
    assert build(PretrainedExperiment, content)
    for arm in content["arms"]:
        check_arm(arm_values(content, arm), arm)


@pytest.mark.parametrize(
    ("name", "arm", "experts", "ramp", "samples"),
    [
        ("gpt2-openwebtext", "d2dmoe", 768, "none", 960_000),
        ("gpt2-openwebtext", "d2dmoe_gelu", 768, "none", 960_000),
        ("gpt2-openwebtext", "moefication", 128, "none", 960_000),
        ("bert-carer", "d2dmoe", 128, "linear", 160_000),
        ("bert-carer", "moefication", 128, "linear", 160_000),
        ("vit-imagenet", "d2dmoe", 512, "linear_warmup", 115_200_000),
        ("vit-imagenet", "moefication", 128, "linear_warmup", 115_200_000),
    ],
)
def test_the_papers_arms_have_its_experts_and_trainings(name, arm, experts, ramp, samples):
    content = arm_values(merge(DEFAULTS, *read_experiment(name, FILES)), arm)
    sparsify = content["sparsify"]
    assert content["cluster_experts"]["expert_size"] * experts == 3072
    assert (sparsify["ramp"], sparsify["batch"] * sparsify["steps"]) == (ramp, samples)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pretrained": {"config": {"model_type": "gpt2"}}}, "pretrained.folder: name a folder or a config, not both"),
        ({"pretrained": {"folder": ""}}, "name a folder or a config, one of them"),
        ({"pretrained": {"folder": "", "config": {"n_layer": 2}}}, "pretrained.config.model_type is missing"),
        (
            {"pretrained": {"folder": "", "config": {"model_type": 3}}},
            "config.model_type is 3; name a family",
        ),
        ({"pretrained": {"tokenizer": "x"}}, "a folder has its own"),
        ({"pretrained": {"folder": "$HOME/net"}}, r"the only variable is \$PLANER_ASSETS"),
        ({"pretrained": {"folder": "$PLANER_ASSETSX/net"}}, "the only variable"),
        ({"task": {"train": ""}}, "task.train is empty"),
        (
            {"task": {"block_size": 1}},
            "task.block_size is 1; timing a decoder needs a token before the last: at least 2$",
        ),
        ({"task": {"metric": "accuracy"}}, "metric is 'accuracy'; allowed for text: auto, nll, ppl$"),
        ({"task": {"metric": "bpc"}}, "metric is 'bpc'; allowed for text: auto, nll, ppl$"),
        ({"task": {"split": {"valid": 0.5, "test": 0.5}}}, "together they must be below 1"),
        ({"arms": {"d": {"method": "magic"}}}, "arms.d.method is 'magic'; allowed: dense, experts, threshold"),
        ({"arms": {"d": {"method": "experts", "task": {}}}}, "unknown key arms.d.task; allowed: method, projections"),
        ({"arms": {"d-seed1": {"method": "experts"}}}, "-seed<k> is for repeats"),
        ({"arms": {"shared": {"method": "experts"}}}, "shared is what MLflow calls the stages of no arm"),
        ({"arms": {"a/b": {"method": "experts"}}}, "names hold letters"),
        ({"arms": {"x1" * 51: {"method": "experts"}}}, "names have at most 100 characters"),
        ({"arms": {"x1" * 20: {"method": "experts"}}}, "names must not end in 20 equal parts"),
        (
            {"arms": {"d": {"method": "dense"}}},
            "the arms dense and dense_continued have the method dense, and no others",
        ),
        ({"arms": {"dense": {"sparsify": {}}}}, "dense changes evaluate only"),
        ({"arms": {"dense_continued": {"sparsify": {"weight": 0.1}}}}, "sparsify is {on: none, weight: 0.0}"),
        ({"arms": {"dense_continued": {"thresholds": {}}}}, "dense_continued changes evaluate only"),
        ({"projections": {"replace": ["queries"]}}, "projections.replace"),
        ({"evaluate": {"taus": []}}, "evaluate.taus is empty; name thresholds, or leave dynamic_k out of selectors"),
        ({"finetune": {"tgt_len": 5}}, "unknown key finetune.tgt_len"),
    ],
)
def test_a_wrong_experiment_is_refused(changes, message):
    with pytest.raises(UserError, match=message) as refused:
        build(PretrainedExperiment, values(**changes))
    assert "\n" not in str(refused.value)


def test_a_block_of_masked_tokens_needs_at_least_3_tokens():
    task = {"kind": "masked_tokens", "train": "my.txt", "block_size": 2}
    with pytest.raises(UserError, match="block_size is 2; .* at least 3"):
        build(PretrainedExperiment, merge(DEFAULTS, GIVEN | {"task": task}))


def test_a_task_without_a_kind_is_refused():
    with pytest.raises(UserError, match="task.kind is missing"):
        build(PretrainedExperiment, merge(DEFAULTS, {"pretrained": {"folder": "net"}, "task": {"train": "my.txt"}}))


def test_sparsification_of_random_weights_is_refused():
    changes = {"pretrained": {"folder": "", "config": {"model_type": "gpt2"}}, "sparsify": {"start": "folder"}}
    with pytest.raises(UserError, match="random weights; write dense"):
        build(PretrainedExperiment, values(**changes))


def test_an_arm_changes_only_its_sections():
    small = {"small": {"method": "experts", "cluster_experts": {"expert_size": 4}}}
    content = values(arms=small)
    changed = arm_values(content, "small-seed3")
    assert changed["cluster_experts"] == content["cluster_experts"] | {"expert_size": 4}
    assert arm_values(content, "dense") == content


def test_a_wrong_override_names_key_and_arm():
    content = values(arms={"odd": {"method": "experts", "sparsify": {"weight": -1}}})
    with pytest.raises(UserError, match=r"sparsify.weight is -1; it must be from 0 .*\(arms.odd\)"):
        arm_values(content, "odd")


@pytest.mark.parametrize("variant", ["baseline", "dense-seed", "dense-seed0", "dense-seed1-seed1", "dense-seed1000000"])
def test_unknown_variants_are_refused(variant):
    with pytest.raises(
        UserError, match="allowed: dense_continued, dense; add -seed<k> to repeat one, k from 1 to 999999"
    ):
        arm_name(values(), variant)


def test_the_dense_variant_has_the_same_seed():
    assert (dense_of("d2dmoe"), dense_of("d2dmoe-seed2")) == ("dense", "dense-seed2")


EXPERTS, THRESHOLD = {"method": "experts"}, {"method": "threshold"}


def test_arms_are_compared_with_a_dense_network_of_equal_training():
    content = values(
        arms={
            "d2dmoe": EXPERTS,
            "plain": THRESHOLD,
            "relu": THRESHOLD | {"sparsify": {}},
            "split": EXPERTS | {"sparsify": {"steps": 0}},
        }
    )
    found = {name: reference_of(content, name) for name in content["arms"]}
    continued = dict.fromkeys(("d2dmoe", "relu"), "dense_continued")
    assert found == dict.fromkeys(("dense", "dense_continued", "plain", "split"), "dense") | continued
    assert reference_of(content, "d2dmoe-seed2") == "dense_continued-seed2"
    assert reported_arms(content)[:2] == ["dense_continued", "dense"]
    assert reported_arms(values(arms={"plain": THRESHOLD})) == ["dense", "plain"]


def test_dense_continued_trains_as_sparsification_without_penalty():
    content = values(sparsify={"steps": 7, "batch": 5, "start": "folder"})
    assert arm_values(content, "dense_continued")["sparsify"] == content["sparsify"] | {"on": "none", "weight": 0.0}


def test_arms_with_equal_settings_share_their_stages():
    small = {"cluster_experts": {"expert_size": 4}}
    content = values(
        arms={
            "d2dmoe": EXPERTS,
            "small": EXPERTS | small,
            "moefication": EXPERTS | small | {"train_routers": {"target": "moefication"}},
            "relu": THRESHOLD | {"sparsify": {"weight": DEFAULTS["sparsify"]["weight"]}},
            "weak": EXPERTS | {"sparsify": {"weight": 1e-5}},
            "plain": THRESHOLD,
            "other": THRESHOLD | {"evaluate": {"batches": [2]}},
        }
    )
    owners = {
        stage: {arm: owner(content, stage, arm) for arm in content["arms"]}
        for stage in ("sparsify", "cluster", "routers", "thresholds")
    }
    own = {name: name for name in content["arms"]}
    shared = own | dict.fromkeys(("small", "moefication", "relu"), "d2dmoe")
    assert owners["sparsify"] == shared
    assert owners["cluster"] == own | {"moefication": "small"}
    assert owners["routers"] == own
    assert owners["thresholds"] == own | {"other": "plain"}
    assert owner(content, "sparsify", "small-seed1") == "d2dmoe-seed1"


def test_distilled_projections_are_shared_and_dense_arms_have_none():
    replacing = {"projections": {"replace": ["query", "output"]}}
    arms = {"plain": EXPERTS, "mlps": EXPERTS | replacing, "fast": THRESHOLD | replacing}
    arms["small"] = EXPERTS | replacing | {"sparsify": {"weight": 1e-5}}
    content = values(arms=arms | {"other": EXPERTS | {"projections": {"steps": 5}}})
    owners = [owner(content, "projections", arm) for arm in ("small", "fast", "mlps-seed2")]
    assert owners == ["mlps", "mlps", "mlps-seed2"]
    assert owner(content, "sparsify", "other") == "plain" and owner(content, "sparsify", "mlps") == "mlps"
    everywhere = values(arms={"plain": EXPERTS}, projections={"replace": ["query"]})
    assert replaces_projections(everywhere, "plain")
    assert not any(replaces_projections(everywhere, arm) for arm in ("dense", "dense_continued"))


def test_files_of_a_shared_stage_have_one_owner():
    content = values(arms={"d2dmoe": EXPERTS, "small": EXPERTS | {"cluster_experts": {"expert_size": 4}}})
    with pytest.raises(UserError, match="small-seed1 has the same sparsify as d2dmoe-seed1, .* name those of d2dmoe-s"):
        check_stage(content, "small-seed1", "sparsify")
    for variant, stage in (("d2dmoe", "sparsify"), ("small", "cluster"), ("small", "hf"), ("dense", "finetune")):
        check_stage(content, variant, stage)


def test_batches_of_training_stages():
    arms = {"small": EXPERTS, "large": EXPERTS | {"sparsify": {"batch": 64}}}
    arms["mlps"] = THRESHOLD | {"projections": {"replace": ["key"], "batch": 48}}
    content = values(arms=arms, finetune={"batch": 16}, train_routers={"batch": 8})
    batches = {"finetune": 16, "sparsify": 32, "train_routers": 8}
    assert training_batches(content) == batches | {"arms.large.sparsify": 64, "arms.mlps.projections": 48}
    untrained = values(arms={"plain": THRESHOLD}, finetune={"steps": 0})
    assert training_batches(untrained) == {}


def test_a_stage_that_a_variant_lacks_is_refused():
    arms = {"d2dmoe": EXPERTS, "plain": THRESHOLD, "relu": THRESHOLD | {"sparsify": {}}}
    content = values(arms=arms)
    for variant, stage, stages in (
        ("d2dmoe-seed2", "projections", "sparsify, cluster, routers"),
        ("plain", "routers", "thresholds"),
        ("relu", "cluster", "sparsify, thresholds"),
        ("dense", "thresholds", "finetune"),
        ("dense_continued", "projections", "sparsify"),
    ):
        with pytest.raises(UserError, match=f"^{variant} has no stage {stage}; its stages: {stages}$"):
            check_stage(content, variant, stage)


def test_stages_and_arms_may_have_the_same_name():
    content = values(arms={"routers": THRESHOLD, "sparsify": EXPERTS, "other": EXPERTS})
    for variant in ("routers", "sparsify", "other"):
        check_stage(content, variant, "eval.json")
    with pytest.raises(UserError, match="unknown variant 'cluster'"):
        check_stage(content, "cluster", "eval.json")


def test_assets_are_below_their_variable(monkeypatch):
    monkeypatch.setenv("PLANER_ASSETS", "/big/assets")
    assert str(resolve("$PLANER_ASSETS/minilm")) == "/big/assets/minilm"
    assert str(resolve("mine/net")) == "mine/net"


def test_experiments_with_a_pretrained_network_are_recognised(tmp_path):
    contents = {
        "own": "model: {d_model: 8}\n",
        "net": "seed: 1\npretrained: {folder: x}\n",
        "child": "base: net\n",
        "grandchild": "base: 'child'\n",
        "inner": "x:\n  pretrained: 1\n",
        "marked": "\ufeffpretrained: {folder: x}\n",
        "quoted": "'pretrained' : {folder: x}\n",
        "flow": "{seed: 1, pretrained: {folder: x}}\n",
        "below": "base:\n  'net'\n",
        "text": "data: |\n  pretrained: 1\nbase: own\n",
        "broken": "pretrained: {folder: x}\nseed: [1\n",
    }
    files = {name: tmp_path / f"{name}.yaml" for name in contents}
    for name, text in contents.items():
        files[name].write_text(text)
    files["gone"] = tmp_path / "gone.yaml"
    assert pretrained_names(files) == ["below", "broken", "child", "flow", "grandchild", "marked", "net", "quoted"]
