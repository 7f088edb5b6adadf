"""Folders of networks with MLPs in place of attention projections."""

from __future__ import annotations

import copy
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import planer.pretrained
from planer.__main__ import main
from planer.conversion.dynamic import dynamic_layers
from planer.conversion.sites import feed_forward_sites
from planer.errors import UserError
from planer.evaluation.arms.evaluate import Arm, evaluate_arm
from planer.evaluation.arms.flops import network_flops
from planer.evaluation.arms.points import expert_points
from planer.files import check_shape

transformers = pytest.importorskip("transformers", reason="the package transformers is not installed")

from planer.pretrained.folder import check_folder, head_of  # noqa: E402
from planer.pretrained.load import load_model  # noqa: E402
from planer.pretrained.save import write_folder  # noqa: E402
from tests.unit.converted import run_card, split  # noqa: E402
from tests.unit.made_up_arms import arm  # noqa: E402
from tests.unit.pretrained_networks import network, task_of  # noqa: E402
from tests.unit.test_projections import FAMILIES, replaced  # noqa: E402
from tests.unit.tiny_pretrained import LAYERS, WIDTH, inputs, logits, save  # noqa: E402

AUTO = {"bert": "AutoModelForSequenceClassification", "vit": "AutoModelForImageClassification"}
CONFIG = SimpleNamespace(
    selectors=("dynamic_k", "top_k"),
    taus=(0.0, 0.5),
    shares=(0.5,),
    bounds=(),
    batches=(1,),
    tolerance=0.5,
    latency_rounds=3,
)


def converted(family: str) -> torch.nn.Module:
    """The network with all layers split into experts and random routers; all experts run."""
    return split(replaced(family, activation="relu"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The folder of each family's network with dynamic-k."""
    home = tmp_path_factory.mktemp("projections")
    for family in FAMILIES:
        save(family, home / family / "source")
        source = check_folder(home / family / "source", head_of(home / family / "source"))
        model = converted(family)
        planer.pretrained.select(model, "dynamic_k", 0.4, fast=False)
        evaluation = arm("d2dmoe", "experts", "dynamic_k", 0.015)
        write_folder(model, source, home / family / "hf", evaluation)
    return home


@pytest.mark.parametrize("family", FAMILIES)
def test_a_reloaded_network_gives_the_same_bits(family, folders):
    model, x = converted(family), inputs(family)
    again = getattr(transformers, AUTO[family]).from_pretrained(folders / family / "hf")
    dense = logits(model, x)
    planer.pretrained.select(model, "dynamic_k", 0.4, fast=False)
    assert torch.equal(logits(again, x), logits(model, x)) and not torch.equal(logits(again, x), dense)
    assert [site.name for site in feed_forward_sites(again)] == [site.name for site in feed_forward_sites(model)]
    planer.pretrained.select(again, "all")
    assert torch.equal(logits(again, x), dense)
    assert torch.equal(logits(copy.deepcopy(again), x), dense)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_network_without_its_head_has_the_same_projections(family, folders):
    base, model = transformers.AutoModel.from_pretrained(folders / family / "hf"), converted(family)
    planer.pretrained.select(base, "all")
    with torch.no_grad():
        hidden = [one(inputs(family)).last_hidden_state for one in (base, model.base_model)]
    assert torch.equal(*hidden)


def test_the_code_of_the_model_card_runs(folders):
    run_card(folders / "bert/hf")


def test_transformers_without_planer_refuses_the_folder(folders):
    code = f"import transformers; transformers.AutoConfig.from_pretrained({str(folders / 'vit/hf')!r})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode != 0 and "model type `planer-vit` but Transformers does not recognize" in run.stderr


def test_a_folder_of_a_stage_is_loaded(tmp_path):
    """Before conversion, as between distillation and sparsification; config.json describes the projections."""
    model = replaced("vit")
    model.save_pretrained(tmp_path)
    again = load_model(check_folder(tmp_path, "image_classification", converted=True, with_processor=False))
    assert torch.equal(logits(again, inputs("vit")), logits(model, inputs("vit")))
    assert again.config.projections == {
        "replace": ["query", "key", "value", "output"],
        "width": WIDTH // 2,
        "dropout": 0.05,
        "activation": None,
    }


def test_experiments_and_plain_export_refuse_the_folder(folders, tmp_path):
    with pytest.raises(UserError, match="has MLPs in the place of attention projections; name the folder that it was"):
        check_folder(folders / "vit/hf", "image_classification")
    with pytest.raises(SystemExit, match="has MLPs in the place of attention projections, which its family has not"):
        main(["export", str(folders / "vit/hf"), str(tmp_path / "plain"), "--plain"])
    assert not (tmp_path / "plain").exists()


def test_the_model_card_and_info_describe_the_projections(folders, capsys):
    card = (folders / "bert/hf/README.md").read_text()
    assert "whose feed-forward layers and attention projections compute for each token only a part" in card
    assert "does not\nknow the type `planer-bert`" in card and "loads the dense network" not in card
    main(["info", str(folders / "bert/hf")])
    out = capsys.readouterr().out
    assert f"projections: query, key, value, output: MLPs of {WIDTH // 2} neurons\n" in out and "(planer-bert)" in out


@pytest.mark.parametrize("family", FAMILIES)
def test_closed_forms_of_flops_agree_with_the_counter(family):
    """The MLPs are narrower than d / 2, so that they cost less than the projections."""
    model, x = replaced(family, width_factor=0.5, replace=("query", "output")), inputs(family)
    model.config._attn_implementation = "eager"  # the counter does not see fused attention on a CPU
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
    tokens = 5 if family == "vit" else x.shape[1]
    parts = network_flops(model).per_token([tokens] * len(x))
    assert counter.get_total_flops() == pytest.approx(parts["total"] * len(x) * tokens)
    dense = network_flops(network(family)).per_token([tokens] * len(x))
    assert parts["projections"] == dense["projections"] / 2 and parts["total"] < dense["total"]


@pytest.mark.parametrize("family", FAMILIES)
def test_evaluation_counts_executed_experts_of_projections(family, tmp_path):
    model, task = converted(family), task_of(family, tmp_path)
    model.config.quantization_config = None
    points = expert_points(model, CONFIG)
    assert [point.selector for point in points] == ["all", "dynamic_k", "dynamic_k"], "no k fits all layers"
    evaluation = evaluate_arm(Arm("toy", "d2dmoe", "experts", model, points), network(family), task, CONFIG)
    check_shape("eval.json", evaluation, "arm")
    full, everything, part = evaluation["rows"]
    flops = evaluation["flops"]
    assert full["feed_forward_ratio"] == full["network_ratio"] == 1, "MLPs of d / 2 neurons have the same FLOPs"
    assert full["feed_forward_flops"] == flops["feed_forward"] + flops["projections"]
    experts = {layer.name: layer.num_experts for layer in dynamic_layers(model)}
    assert len(experts) == 5 * LAYERS and len(set(experts.values())) == 2
    assert {layer["layer"]: layer["mean"] for layer in everything["layers"]} == experts
    routers = sum(2 * 8 * (WIDTH + number) + 2 * number for number in experts.values())
    assert everything["network_flops"] == pytest.approx(flops["total"] + routers)
    saved = sum((experts[layer["layer"]] - layer["mean"]) * 4 * WIDTH * 4 for layer in part["layers"])
    assert part["network_flops"] == pytest.approx(everything["network_flops"] - saved)
    executed = sum(layer["mean"] for layer in part["layers"]) / sum(experts.values())
    assert part["executed_share"] == pytest.approx(executed) and 0 < executed < 1
