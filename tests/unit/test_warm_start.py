"""Weights that retraining starts from: the supernet's to the last bit, and copies of the baseline's layers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_retrain import CONFIG, OPTIMIZER

from planer.architecture import Architecture, Attention, FeedForward, MoE, Skip
from planer.config import derive_seed
from planer.files import UserError
from planer.model import LanguageModel, initialise
from planer.search.sample import same_architecture
from planer.search.scorers.replace_one import SupernetLoss
from planer.search.supernet import Supernet
from planer.search.warm_start import inherited, upcycled
from planer.training.checkpoint import Checkpoint
from planer.training.retrain import retrain
from planer.training.validate import VALID_BATCH, mean_nll
from planer.variant import parse_variant

CPU = torch.device("cpu")
OPTIONS = (Skip(), Attention(1, 8), Attention(2, 8), FeedForward(24), MoE(24, 3, 1), MoE(24, 3, 2))
TEXT = np.random.default_rng(0).integers(11, size=900, dtype=np.uint8)


def architecture(*blocks, norm: str = "post") -> Architecture:
    return Architecture(11, 16, blocks, norm=norm, dropout=0.1, moe_dropout=0.2, init_std=0.3)


def trained(network: Architecture, seed: int = 0) -> LanguageModel:
    """Not trained, but every weight differs from every other, biases too."""
    model = LanguageModel(network)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return model.eval()


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("path", [[1, 5, 0, 4, 3], [2, 4, 5, 5, 1]])
def test_an_inherited_network_is_the_path_through_its_supernet(norm, path, tmp_path):
    supernet = Supernet(architecture(norm=norm), OPTIONS, len(path), "all")
    initialise(supernet, torch.Generator().manual_seed(0))
    network = architecture(*(OPTIONS[option] for option in path), norm=norm)
    save_file(inherited(network, supernet), tmp_path / "weights.safetensors")
    model = LanguageModel(network)
    model.load_state_dict(load_file(tmp_path / "weights.safetensors"))  # complete, and nothing beside it
    lengths = (VALID_BATCH, CONFIG.tgt_len, CONFIG.mem_len)
    expected = SupernetLoss(supernet, TEXT, CONFIG, CPU, torch.float32)(path)
    assert mean_nll(model, TEXT, *lengths, device=CPU, attention="recompute")[0] == expected
    other = SupernetLoss(supernet, TEXT, CONFIG, CPU, torch.float32)([*path[:4], 2])
    assert abs(other - expected) > 1e-4


def test_a_block_outside_the_design_space_has_nothing_to_inherit():
    with pytest.raises(UserError, match="f is no network of this experiment's supernet"):
        inherited(architecture(FeedForward(25)), Supernet(architecture(), OPTIONS, 1, "all"))


BASELINE = architecture(*[Attention(2, 8), FeedForward(24)] * 3)


def filled(network: Architecture, weights: dict) -> LanguageModel:
    """The network with other random weights, and these in place of theirs."""
    model = trained(network, seed=1)
    model.load_state_dict(model.state_dict() | weights)
    return model


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_a_mixture_upcycled_is_the_dense_layer_times_its_gates(norm):
    """Gates of two experts sum to 1; the gate of one is its probability (routing.top_k)."""
    baseline = trained(dataclasses.replace(BASELINE, norm=norm))
    network = architecture(MoE(24, 3, 2), MoE(24, 3, 1), norm=norm)
    model = filled(network, upcycled(network, baseline))
    dense, (top2, top1), x = baseline.blocks[1], model.blocks, torch.randn(2, 40, 16)
    with torch.no_grad():
        torch.testing.assert_close(top2(x, None)[0], dense(x, None)[0])
        probability = (x @ top1.sublayer.gate.T).softmax(-1).amax(-1, keepdim=True)
        assert probability.min() < 0.5
        torch.testing.assert_close(top1.sublayer(x), probability * dense.sublayer(x))
        assert torch.equal(top1.norm.weight, dense.norm.weight) and torch.equal(top1.norm.bias, dense.norm.bias)
        assert top1.sublayer.load.min() > 0, "a random gate keeps every expert busy"


def test_layers_come_from_the_nearest_block_the_earlier_of_two():
    baseline = trained(BASELINE)
    network = architecture(
        MoE(24, 2, 1), Attention(2, 8), MoE(24, 2, 2), FeedForward(24), Attention(2, 8), MoE(24, 2, 1)
    )
    weights = upcycled(network, baseline)
    for position, source in {0: 1, 2: 1, 5: 5}.items():
        layer = baseline.blocks[source].sublayer
        for name, tensor in (("w1", layer.w1.weight), ("b1", layer.w1.bias), ("w2", layer.w2.weight)):
            for expert in weights[f"blocks.{position}.sublayer.experts.{name}"]:
                assert torch.equal(expert, tensor), (position, name)
    for position, source in {1: 0, 3: 3, 4: 4}.items():
        for name, tensor in baseline.blocks[source].state_dict(prefix=f"blocks.{position}.").items():
            assert torch.equal(weights[name], tensor), name


def test_what_the_baseline_lacks_stays_random(tmp_path):
    network = architecture(Attention(1, 8), MoE(24, 2, 1), FeedForward(48, 2), Skip(), MoE(12, 2, 1), FeedForward(24))
    weights = upcycled(network, trained(BASELINE))
    missing = set(LanguageModel(network).state_dict()) - set(weights)
    gate = "blocks.1.sublayer.gate"
    assert gate in missing
    assert {name.split(".")[1] for name in missing - {gate}} == {"0", "2", "4"}
    save_file(weights, tmp_path / "weights.safetensors")  # refuses tensors that share memory


def test_without_mixtures_all_is_copied():
    baseline = trained(dataclasses.replace(BASELINE, norm="pre"))
    model = LanguageModel(baseline.architecture)
    model.load_state_dict(upcycled(baseline.architecture, baseline))
    for name, tensor in baseline.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_retraining_starts_from_the_weights_given(tmp_path):
    """With a learning rate too small to change anything but a zero."""
    frozen = dataclasses.replace(OPTIMIZER, lr=1e-30, lr_min=1e-30)
    config = dataclasses.replace(CONFIG, steps=2, optimizer=frozen)
    network = architecture(Attention(1, 8), MoE(24, 3, 2))
    weights = upcycled(network, trained(BASELINE))

    def run(**start):
        checkpoint = Checkpoint(tmp_path / start.get("start", "scratch"), "test")
        return retrain(network, TEXT, TEXT[:300], config, 1, CPU, torch.float32, checkpoint, **start)

    random = LanguageModel(network)
    initialise(random, torch.Generator().manual_seed(derive_seed(1, "retrain", "initialisation")))
    model, _, metrics = run(start="upcycle", weights=weights)
    for name, tensor in model.state_dict().items():
        begun = weights.get(name, random.state_dict()[name])
        torch.testing.assert_close(tensor, begun, rtol=0, atol=1e-25, msg=name)
    assert metrics["start"] == "upcycle" and metrics["valid_nll_before"] == metrics["valid_nll"]
    metrics = run()[2]
    assert metrics["start"] == "scratch" and "valid_nll_before" not in metrics
    with pytest.raises(RuntimeError, match="blocks.7"):
        run(start="inherit", weights={"blocks.7.norm.weight": torch.zeros(16)})


def test_a_warm_start_has_the_network_and_the_notes_of_its_original(tmp_path):
    selection = {"variant": "target_0.5", "chosen_by": "pattern", "target": None, "estimated": 0.49}
    BASELINE.save(tmp_path / "architecture.yaml", selection=selection)
    network, notes = same_architecture(tmp_path / "architecture.yaml", parse_variant("target_0.5-inherit"))
    assert network == BASELINE
    assert notes == {"selection": selection | {"variant": "target_0.5-inherit"}}
