"""The start of a supernet from a trained parent: the path of the parent's blocks has the parent's logits, and each
option has the weights that a block of that option starts with."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from toy import VOCAB_SIZE, experiment

from planer.blocks.attention import FirstHeads
from planer.models import LanguageModel, initialise
from planer.search.sharing import owners
from planer.search.supernet import Supernet
from planer.search.supernet_start import start_supernet
from planer.specs import Architecture, Attention, BlockSpec, FeedForward, MoE, Skip
from planer.training.parent_start import Parent, start_block

SHAPE = experiment().search
TEXT = np.random.default_rng(0).integers(0, VOCAB_SIZE, 2000).astype(np.uint8)
OPTIONS = (Skip(), Attention(1, 8), Attention(2, 8), Attention(4, 8), FeedForward(48), MoE(48, 3, 1), MoE(48, 3, 2))
ONE, TWO, FOUR, FEED_FORWARD, TOP1, TOP2 = 1, 2, 3, 4, 5, 6
PATH = [FOUR, FEED_FORWARD, FOUR, FEED_FORWARD]
"""The options of the parent's blocks."""


def architecture(norm: str = "post") -> Architecture:
    blocks = tuple(OPTIONS[option] for option in PATH)
    return Architecture(VOCAB_SIZE, 32, blocks, norm, dropout=0.1, moe_dropout=0.1, init_std=0.3)


def parent_of(norm: str = "post") -> Parent:
    model = LanguageModel(architecture(norm))
    initialise(model, torch.Generator().manual_seed(5))
    return Parent(model, TEXT, SHAPE)


def started(sharing: str, parent: Parent, options: tuple[BlockSpec, ...] = OPTIONS) -> Supernet:
    supernet = Supernet(parent.model.architecture, options, len(PATH), sharing)
    initialise(supernet, torch.Generator().manual_seed(2))
    start_supernet(supernet, parent)
    return supernet.eval()


def logits(model: LanguageModel) -> torch.Tensor:
    """The logits of the third of three segments."""
    memory = None
    with torch.no_grad():
        for segment in np.split(TEXT[:96].astype(np.int64), 3):
            output = model(torch.from_numpy(segment)[None], memory, mem_len=40)
            hidden, memory = output.hidden, output.state
        return model.logits(hidden)


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize(("sharing", "tolerance"), [("none", 0), ("heads", 1e-4), ("all", 1e-4)])
def test_the_path_of_the_parents_blocks_has_the_parents_logits(norm, sharing, tolerance):
    """The bits are equal without shared heads.  Shared heads have another order, and so have the terms of a sum."""
    parent = parent_of(norm)
    supernet = started(sharing, parent)
    supernet.choose(PATH)
    torch.testing.assert_close(logits(supernet), logits(parent.model), rtol=tolerance, atol=tolerance)
    supernet.choose([FOUR, FEED_FORWARD, TWO, FEED_FORWARD])
    assert not torch.allclose(logits(supernet), logits(parent.model), rtol=1e-2, atol=1e-2)  # another path


@pytest.mark.parametrize("option", [FOUR, TOP2])
def test_the_order_of_options_does_not_change_shared_weights(option):
    parent = parent_of()
    first, last = started("all", parent), started("all", parent, OPTIONS[::-1])
    for one, other in zip(first.blocks, last.blocks, strict=True):
        weights, others = (
            dict(o.sublayer.named_parameters()) for o in (one.options[option], other.options[-1 - option])
        )
        assert all(torch.equal(weights[name], others[name]) for name in weights if name != "gate")


@pytest.mark.parametrize("sharing", ["none", "heads", "all"])
def test_the_path_of_top_2_mixtures_has_the_parents_logits(sharing):
    """Its experts are copies of the parent's layer, and their weights sum to one."""
    parent = parent_of()
    supernet = started(sharing, parent)
    supernet.choose([FOUR, TOP2, FOUR, TOP2])
    torch.testing.assert_close(logits(supernet), logits(parent.model), rtol=1e-3, atol=1e-3)


def test_options_without_sharing_equal_blocks_started_from_the_parent():
    parent = parent_of()
    supernet = started("none", parent)
    for position, block in enumerate(supernet.blocks):
        for spec, option in zip(OPTIONS, block.options, strict=True):
            alone = spec.build(supernet.architecture)
            if isinstance(spec, MoE):  # the router is random
                alone.sublayer.gate.data.copy_(option.sublayer.gate)
            start_block(alone, spec, position, parent)
            assert alone.state_dict().keys() == option.state_dict().keys()
            assert all(torch.equal(option.state_dict()[name], value) for name, value in alone.state_dict().items())


@pytest.mark.parametrize("sharing", ["heads", "all"])
def test_fewer_heads_are_the_most_important_heads(sharing):
    """Their weights are those of a block that starts with the most important heads."""
    parent = parent_of()
    supernet = started(sharing, parent)
    for position, block in enumerate(supernet.blocks):
        for number in (ONE, TWO):
            narrow, alone = block.options[number], OPTIONS[number].build(supernet.architecture)
            assert isinstance(narrow.sublayer, FirstHeads)
            start_block(alone, OPTIONS[number], position, parent, by_importance=True)
            weights = narrow.sublayer.weights()
            assert all(torch.equal(weights[name], value) for name, value in alone.sublayer.state_dict().items())
            assert torch.equal(narrow.norm.weight, alone.norm.weight)
    orders = [errors.argsort(descending=True).tolist() for errors in parent.importances if errors is not None]
    assert orders != [[0, 1, 2, 3]] * 2  # the parent's order differs


def test_experts_are_copies_and_those_of_a_top_1_mixture_alone_are_scaled():
    parent = parent_of()
    copied = parent.model.blocks[1].sublayer.w2.weight
    shared, own = (started(sharing, parent).blocks[1].options for sharing in ("all", "heads"))
    assert shared[TOP1].sublayer.experts is shared[TOP2].sublayer.experts
    assert all(torch.equal(expert, copied) for expert in shared[TOP1].sublayer.experts.w2)
    assert torch.equal(shared[TOP1].norm.weight, parent.model.blocks[1].norm.weight)
    assert all(torch.equal(expert, copied) for expert in own[TOP2].sublayer.experts.w2)
    scale = own[TOP1].sublayer.experts.w2[0] / copied
    assert scale.mean() > 1.1 and scale.std() < 1e-4


def test_the_owner_of_the_weights_of_each_option():
    assert owners(OPTIONS, "none") == list(range(7))
    assert owners(OPTIONS, "heads") == [0, FOUR, FOUR, FOUR, FEED_FORWARD, TOP1, TOP2]
    assert owners(OPTIONS, "all") == [0, FOUR, FOUR, FOUR, FEED_FORWARD, TOP2, TOP2]
    assert owners(OPTIONS[::-1], "all") == [0, 0, 2, 3, 3, 3, 6]


def test_attention_that_shares_no_heads_has_the_parents_order_of_heads():
    """The logits of its path have the parent's bits."""
    parent = parent_of()
    supernet = Supernet(dataclasses.replace(architecture(), blocks=()), OPTIONS[3:], len(PATH), "heads")
    initialise(supernet, torch.Generator().manual_seed(2))
    start_supernet(supernet, parent)
    supernet.eval().choose([0, 1, 0, 1])
    assert torch.equal(logits(supernet), logits(parent.model))
