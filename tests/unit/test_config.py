"""Experiments: shipped ones are valid, and a mistake is one line with key, value and what is allowed."""

from __future__ import annotations

import copy

import pytest
import yaml
from toy import ROOT

from planer.config import Experiment, sections
from planer.config.pretrained import pretrained_names
from planer.config.strict_yaml import read_experiment
from planer.errors import UserError
from planer.heads import AdaptiveSoftmax
from planer.parsing import build, merge
from planer.seed import derive_seed
from planer.specs import Attention, FeedForward

DEFAULTS = yaml.safe_load((ROOT / "config/config.yaml").read_text())
FILES = {file.stem: file for file in (ROOT / "config/experiments").glob("*.yaml")}
SHIPPED = sorted(FILES.keys() - pretrained_names(FILES))


def shipped(name: str) -> Experiment:
    return build(Experiment, merge(DEFAULTS, *read_experiment(name, FILES)))


@pytest.mark.parametrize("name", SHIPPED)
def test_patterns_of_shipped_experiments_have_equal_depth(name):
    experiment = shipped(name)
    patterns = {
        name: experiment.model.architecture(267_735, pattern) for name, pattern in experiment.patterns.named.items()
    }
    assert all(pattern.params() > 0 for pattern in patterns.values())
    assert len({len(patterns[name].blocks) for name in ("baseline", "sandwich", "par")}) == 1


def test_wikitext_103_has_an_adaptive_softmax():
    """NVIDIA's wt103_base.yaml and wt103_large.yaml; the large one is PAR's."""
    cutoffs, large = (19_997, 39_997, 199_997), shipped("wt103-large")
    assert shipped("wt103").model.head == AdaptiveSoftmax(cutoffs, 1)
    assert large.model.head == AdaptiveSoftmax(cutoffs, 4)
    blocks = large.model.architecture(267_735, large.patterns.baseline).blocks
    assert len(blocks) == 36 and blocks[:2] == (Attention(16, 64), FeedForward(4096))
    assert (large.model.d_model, large.model.init_std, large.model.attention_dropout) == (1024, 0.005, 0.2)
    assert (large.retrain.batch, large.retrain.tgt_len, large.retrain.steps) == (128, 384, 100_000)


def test_the_papers_experiments_have_the_papers_settings():
    """PLANER, appendix: enwik8 and WikiText-103."""
    expected = {
        "enwik8": (24, 64, 512, 512, 120_000, 0.004, 0.7, 0.3),
        "wt103": (32, 256, 192, 192, 40_000, 0.01, 0.6, 0.2),
    }
    for name, (blocks, batch, tgt_len, mem_len, steps, lr, anneal, moe_dropout) in expected.items():
        experiment = shipped(name)
        model, search = experiment.model, experiment.search
        assert len(model.architecture(267_735, experiment.patterns.baseline).blocks) == blocks
        assert (model.d_model, model.num_heads, model.d_head, model.d_inner) == (512, 8, 64, 2048)
        assert (model.num_experts, model.dropout, model.moe_dropout, model.norm) == (8, 0.1, moe_dropout, "post")
        for training in (search, experiment.retrain):
            lengths = (training.batch, training.tgt_len, training.mem_len, training.steps)
            assert lengths == (batch, tgt_len, mem_len, steps)
            assert (training.optimizer.name, training.optimizer.lr, training.optimizer.clip) == ("lamb", lr, 0.25)
        assert (search.temperature, search.anneal, search.alpha_share, search.frozen_share) == (5.0, anneal, 0.2, 0.1)
        assert (search.alpha_optimizer.lr, search.alpha_optimizer.lr_min, search.epoch_steps) == (0.01, 0.01, 0)
        assert experiment.design_space == (
            *("skip", "attention_1", "attention_2", "attention_4", "attention_8"),
            *("feed_forward", "moe_top1", "moe_top2"),
        )


def section_of(values: dict, path: str) -> tuple[dict, str]:
    """The mapping that holds a key, and the key's last part."""
    *parents, key = path.split(".")
    for parent in parents:
        values = values[parent]
    return values, key


def changed(path: str, value: object) -> dict:
    """The defaults with one key changed."""
    values = copy.deepcopy(DEFAULTS)
    section, key = section_of(values, path)
    section[key] = value
    return values


def message(values: dict) -> str:
    with pytest.raises(UserError) as error:
        build(Experiment, values)
    assert "\n" not in str(error.value)
    return str(error.value)


def offending(value: object) -> str:
    """The value that the message must name: of a list the last one, of a mapping the last key."""
    if value is None:
        return "empty"
    return str([*value][-1] if isinstance(value, (list, dict)) and value else value)[:50]


@pytest.mark.parametrize(
    "path, hint",
    [
        ("serch", "unknown key serch; did you mean search?"),
        ("colour", "unknown key colour; allowed: seed, device, threads"),
        ("search.stepz", "unknown key search.stepz; did you mean search.steps?"),
        ("search.optimizer.learning_rate", "unknown key search.optimizer.learning_rate; allowed: name, lr, lr_min"),
        ("evaluate.42", "unknown key evaluate.42; allowed: batch, tgt_len"),
    ],
)
def test_an_unknown_key_is_named(path, hint):
    assert hint in message(changed(path, 1))


@pytest.mark.parametrize("path", ["seed", "retrain", "search.alpha_optimizer.betas", "workload.attention"])
def test_a_missing_key_is_named(path):
    values = copy.deepcopy(DEFAULTS)
    section, key = section_of(values, path)
    del section[key]
    assert f"{path} is missing; config/config.yaml and" in message(values)


@pytest.mark.parametrize(
    "path, value, allowed",
    [
        ("search.steps", "many", "a whole number"),
        ("search.steps", 0.5, "a whole number"),
        ("search.steps", True, "a whole number"),
        ("search.steps", None, "is empty; it must be a whole number"),
        ("search.steps", float("inf"), "a whole number"),
        ("search.optimizer.lr", "1e-3", "a finite number"),
        ("search.optimizer.lr", False, "a finite number"),
        ("retrain.optimizer.betas", [0.9], "must list 2 values"),
        ("retrain.optimizer.betas", 0.9, "must be a list"),
        ("retrain.optimizer", 3, "must be a mapping"),
        ("model", [1, 2], "must be a mapping"),
        ("design_space", "skip", "must be a list"),
        ("design_space", ["skip", 3], "must be text"),
        ("evaluate.taus", [0.0, "x"], "a finite number"),
        ("patterns.baseline", 12, "must be text"),
        ("data.dataset", "enwik9", "one of pysource, enwik8, enwik8-mini, text8, wikitext-103"),
        ("dtype", "float16", "allowed: auto, float32, bfloat16"),
        ("model.norm", "none", "allowed: post, pre"),
        ("workload.attention", "flash", "allowed: cached, recompute"),
        ("candidates.scores", "greedy", "allowed: replace_one, alpha"),
        ("search.optimizer.name", "sgd", "allowed: lamb, adamw"),
        ("projections.replace", ["query"], "must be true or false"),
        ("sparsify.penalty", "l2", "allowed: hoyer, l1"),
        ("sparsify.ramp", "cosine", "allowed: none, linear, linear_warmup"),
    ],
)
def test_a_wrong_type_or_choice_is_refused(path, value, allowed):
    text = message(changed(path, value))
    assert path in text and offending(value) in text and allowed in text


@pytest.mark.parametrize(
    "path, value, allowed",
    [
        ("threads", 0, "from 1 to 1,024"),
        ("max_hours", -1.0, "above 0"),
        ("model.d_model", 0, "from 1 to 65,536"),
        ("model.d_model", 100, "divisible by num_heads (8)"),
        ("model.d_model", 511, "even"),
        ("model.dropout", 1.0, "from 0 and below 1"),
        ("model.moe_dropout", -0.1, "from 0 and below 1"),
        ("workload.tgt_len", 0, "from 1 to 65,536"),
        ("workload.mem_len", -1, "from 0 to 1,000,000"),
        ("profile_blocks.copies", 0, "from 1 to 100"),
        ("profile_blocks.batches", [1, 2, 1], "each once"),
        ("profile_blocks.batches", [4, 0], "from 1 to 1,000,000"),
        ("search.steps", 0, "it must be from 1 to 100,000,000"),
        ("search.batch", -4, "from 1 to 1,000,000"),
        ("search.temperature_floor", 0.0, "above 0"),
        ("search.frozen_share", 1.0, "from 0 and below 1"),
        ("search.epoch_steps", -1, "from 0 to 100,000,000"),
        ("search.optimizer.lr", 0.0, "above 0"),
        ("search.alpha_optimizer.warmup_steps", -5, "from 0 to 100,000,000"),
        ("search.optimizer.betas", [0.9, 1.0], "from 0 and below 1"),
        ("search.optimizer.betas", [0.9, -0.1], "from 0 and below 1"),
        ("retrain.eval_steps", 0, "from 1 to 100,000,000"),
        ("retrain.balance_weight", -0.01, "from 0 to 1,000,000"),
        ("distill.weight", 1.1, "from 0 to 1"),
        ("distill.temperature", 0.0, "above 0"),
        ("sparsify.weight", -1.0, "from 0 to 1,000,000"),
        ("cluster_experts.restarts", 0, "from 1 to 1,000"),
        ("cluster_experts.expert_size", 24, "must divide model.d_inner (2048)"),
        ("train_routers.width", 0, "from 1 to 65,536"),
        ("evaluate.latency_rounds", 0, "from 1 to 100,000"),
        ("evaluate.taus", [0.0, 1.5], "from 0 to 1"),
        ("evaluate.taus", [0.0, 0.5, 0], "each once"),
        ("default_variants", [], "must list 1 to 1,000 values, each once"),
        ("default_variants", ["par", "par"], "each once"),
        ("default_variants", ["par", "target_7"], "from 0.001 to 1"),
        ("default_variants", ["par", "pattern_x"], "patterns.others has no x; it has: none"),
        ("repeatability.variant", "baseline", "a variant other than baseline"),
        ("repeatability.variant", "pattern_x", "patterns.others has no x; it has: none"),
        ("repeatability.alpha", 0.5, "above 0 and below 0.5"),
        ("default_analyses", ["pareto", "pareto"], "each once"),
        ("pareto.targets", [0.5, 0.75, 0.95, 0.5], "each once"),
        ("pareto.compared", [0.5, 0.75], "3 to 100 values"),
        ("pareto.compared", [0.5, 0.75, 0.6, 0.9999], "none of the targets"),
        ("candidates.proposers", {"oracle": 1}, "allowed: shallow, edited, solver, argmax, random, largest"),
        ("candidates.proposers", {"shallow": 0}, "none proposes a network"),
        ("candidates.rungs", [0.4, 0.2], "must rise"),
        ("candidates.rungs", [0.2, 1.0], "above 0 and below 1"),
        ("candidates.rungs", [], "must list 1 to 10 values"),
        ("keep.targets", [0.5, 0.7], "must fall"),
        ("keep.proxy_share", 1.0, "above 0 and below 1"),
        ("keep.trained", 0, "from 1 to 1,000"),
        ("candidates.limits", {"params": 0}, ".params is 0; it must be above 0"),
        ("candidates.limits", {"depth": 0.5}, "allowed: params, active_params"),
        ("candidates.limits", {"latency_batch_016": 0.5}, "allowed: params, active_params"),
        ("candidates.limits", {"latency_batch_\u0663": 0.5}, "allowed: params, active_params"),
        ("design_space", ["skip"], "2 to 100 values, each once"),
        ("design_space", ["skip", "feed_forward", "skip"], "2 to 100 values, each once"),
        ("design_space", ["skip", "conv_3"], "feed_forward, feed_forward_x<2 or more>, moe_top<k>"),
        ("design_space", ["skip", "attention_16"], "allowed: 1 to 8"),
        ("design_space", ["skip", "moe_top9"], "allowed: 1 to 8"),
        ("design_space", ["skip", "moe_top"], "feed_forward, feed_forward_x<2 or more>, moe_top<k>"),
        ("design_space", ["skip", "attention_02"], "write it attention_2"),
        ("design_space", ["skip", "attention_\u0662"], "write it attention_2"),
        ("design_space", ["skip", "moe_top01"], "write it moe_top1"),
        ("design_space", ["skip", "feed_forward_x04"], "write it feed_forward_x4"),
        ("design_space", ["skip", "feed_forward_x1001"], "allowed: 2 to 1,000"),
        ("design_space", ["skip", "attention_" + "9" * 5000], "unknown option"),
        ("device", "tpu", "auto, cpu, cuda or cuda:<number>"),
        ("device", "cuda:01", "auto, cpu, cuda or cuda:<number>"),
        ("seed", 10**400, "from 0 to 999,999,999,999,999,999"),
        ("model.d_model", 10**11, "from 1 to 65,536"),
        ("profile_blocks.copies", 10**9, "from 1 to 100"),
        ("threads", 100_000, "from 1 to 1,024"),
        ("patterns.par", "(sf)x999999999", "more than 1,000 blocks"),
        ("patterns.par", "s04", "write it s4"),
        ("patterns.par", "(sx)x2", "allowed: i, s, f, s1"),
        ("patterns.par", "s9", "allowed: i, s, f, s1"),
        ("patterns.par", "s0", "allowed: i, s, f, s1"),
        ("patterns.par", "(sf)", "write groups as (sf)x4"),
        ("patterns.par", "", "write the blocks in order"),
    ],
)
def test_a_wrong_value_is_refused(path, value, allowed):
    text = message(changed(path, value))
    assert f"config: {path}" in text and offending(value) in text and allowed in text


def test_options_must_fit_the_model():
    assert "'moe_top2' has top_k 2; allowed: 1 to 1, the number of experts" in message(changed("model.num_experts", 1))


def test_a_design_space_of_a_method_must_fit_the_model_where_it_is_used():
    few = {"model": {"num_heads": 4}, "design_space": ["skip", "attention_4", "feed_forward"]}
    experiment = build(Experiment, merge(DEFAULTS, few))
    experiment.check_variant("target_0.5")
    assert experiment.search_methods.options(experiment.model) == []
    for variant, key in (("isoparam_0.5", "isoparam"), ("par_search-seed1", "par_search")):
        with pytest.raises(UserError, match=rf"search_methods\.{key}: 'attention_8' .*allowed: 1 to 4"):
            experiment.check_variant(variant)
        assert f"default_variants: search_methods.{key}: " in message(
            merge(DEFAULTS, few, {"default_variants": [variant]})
        )
    for options in (["skip", "atention_4"], ["skip", "attention_8", "atention_4"]):
        misspelled = merge(DEFAULTS, few, {"search_methods": {"par_search": options}})
        assert "search_methods.par_search: unknown option 'atention_4'" in message(misspelled)
    fitting = merge(DEFAULTS, few, {"search_methods": {"par_search": ["skip", "attention_4"]}})
    experiment = build(Experiment, fitting)
    experiment.check_variant("par_search")
    assert [block.name for block in experiment.search_methods.options(experiment.model)] == ["skip", "attention_4"]


@pytest.mark.parametrize("variant", ["shallow_0.5", "keep_0.01-seed1"])
def test_cuts_of_the_baseline_need_its_blocks_in_the_design_space(variant):
    few = {"model": {"num_heads": 4}, "default_variants": ["baseline"]}
    for missing, options in (("feed_forward", ["skip", "attention_4"]), ("attention_4", ["skip", "feed_forward"])):
        experiment = build(Experiment, merge(DEFAULTS, few, {"design_space": options}))
        experiment.check_variant("target_0.5")
        with pytest.raises(UserError, match=f"variant {variant}: design_space lacks {missing}, which every cut keeps"):
            experiment.check_variant(variant)
    narrow = {"design_space": ["attention_2", "feed_forward"], "patterns": {"baseline": "(sf)x3"}}
    build(Experiment, merge(DEFAULTS, few, narrow)).check_variant(variant)
    sparse = {"design_space": ["sparse_attention_8", "feed_forward"], "patterns": {"baseline": "(q16f)x3"}}
    with pytest.raises(UserError, match="design_space lacks sparse_attention_16, which every cut keeps"):
        build(Experiment, merge(DEFAULTS, few, sparse)).check_variant(variant)


def test_a_shared_supernet_needs_a_proposer_that_asks_it():
    without = merge(DEFAULTS, {"candidates": {"proposers": {"solver": 0, "argmax": 0}}})
    experiment, line = build(Experiment, without), "variant shared_0.5: there is no supernet to share; give a number to"
    for check in (experiment.check_pareto, lambda: experiment.check_variant("shared_0.5")):
        with pytest.raises(UserError, match=line):
            check()
    experiment.check_variant("shared_0.5-scratch")
    build(Experiment, DEFAULTS).check_pareto()
    assert f"default_analyses: {line}" in message(merge(without, {"default_analyses": ["pareto"]}))


def test_a_missing_pattern_is_refused():
    with pytest.raises(UserError, match=r"variant pattern_x: patterns\.others has no x; it has: none"):
        build(Experiment, DEFAULTS).check_variant("pattern_x-seed1")


def test_experts_must_fit_the_mlps_of_replaced_projections():
    """256 neurons in the place of 512 x 512, 333 for 1.3 times the weights."""
    values = changed("projections.width_factor", 1.3)
    build(Experiment, values)
    values["projections"]["replace"] = True
    assert "expert_size: 16 must divide the neurons of the MLP of a projection, which are 333" in message(values)
    build(Experiment, changed("projections.replace", True))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 10**400, "1e-3x"])
@pytest.mark.parametrize(
    "path",
    ["max_hours", "retrain.optimizer.lr", "search.optimizer.betas", "evaluate.taus", "candidates.limits"],
)
def test_values_that_are_not_finite_are_refused(path, value):
    """NaN passes comparisons with bounds."""
    whole = {"betas": [0.9, value], "taus": [0.1, value], "limits": {"params": value}}
    text = message(changed(path, whole.get(path.split(".")[-1], value)))
    assert f"config: {path}" in text and "it must be a finite number" in text and len(text) < 200


def test_600_0_is_a_whole_number():
    values = merge(DEFAULTS, {"search": {"steps": 600.0, "temperature": 5}})
    search = build(Experiment, values).search
    assert (search.steps, search.temperature) == (600, 5.0)
    assert (type(search.steps), type(search.temperature)) == (int, float)


def test_layers_merge_deeply_and_lists_are_replaced():
    bottom = {"a": {"b": 1, "c": [1, 2]}, "d": 2}
    top = {"a": {"c": [3]}, "e": {"f": 4}}
    assert merge(bottom, top, {"d": {"g": 5}}) == {"a": {"b": 1, "c": [3]}, "d": {"g": 5}, "e": {"f": 4}}
    assert bottom == {"a": {"b": 1, "c": [1, 2]}, "d": 2} and top == {"a": {"c": [3]}, "e": {"f": 4}}
    assert merge() == {}


def test_a_stage_has_only_its_declared_sections():
    config = sections({name: DEFAULTS[name] for name in ("search", "threads", "design_space")})
    whole = build(Experiment, DEFAULTS)
    assert config.search == whole.search and config.threads == 2 and config.design_space == whole.design_space
    with pytest.raises(AttributeError):
        _ = config.retrain
    with pytest.raises(UserError, match="unknown key search.stepz"):
        sections({"search": DEFAULTS["search"] | {"stepz": 1}})


def test_options_and_symbols_name_the_same_blocks():
    model = build(Experiment, DEFAULTS).model
    symbols = model.symbols()
    assert model.option("attention_8") == symbols["s"] == symbols["s8"]
    for name, symbol in (("skip", "i"), ("feed_forward", "f"), ("attention_2", "s2"), ("moe_top2", "m2")):
        assert model.option(name) == symbols[symbol] and model.option(name).name == name


def test_derived_seeds_do_not_change():
    """Results are published with their seed."""
    assert derive_seed(1111, "search", 0) == 367815968
    assert derive_seed(0) == 804681139
    seeds = {derive_seed(seed, name, k) for seed in range(5) for name in ("search", "retrain") for k in range(5)}
    assert len(seeds) == 50 and all(0 <= seed < 2**31 for seed in seeds)
