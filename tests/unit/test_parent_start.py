"""Initial weights from a trained parent."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_retrain import CONFIG

from planer.data.stream import StreamBatches
from planer.models import LanguageModel
from planer.specs import Architecture, Attention, FeedForward, MoE, Skip
from planer.training.parent_start import Parent, start_block, start_from_parent

pytestmark = pytest.mark.slow
TEXT = np.random.default_rng(0).integers(11, size=900, dtype=np.uint8)
BLOCKS = (Attention(4, 8), FeedForward(24), Attention(4, 8), FeedForward(24), Attention(2, 8))


def architecture(*blocks, norm: str = "post") -> Architecture:
    return Architecture(11, 16, blocks, norm=norm, dropout=0.1, moe_dropout=0.2, init_std=0.3)


def random(network: Architecture, seed: int = 0) -> LanguageModel:
    """A network of random weights and biases."""
    model = LanguageModel(network)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return model.eval()


def parent_of(*blocks, norm: str = "post") -> Parent:
    return Parent(random(architecture(*blocks, norm=norm)), TEXT, CONFIG)


def started(parent: Parent, *blocks, **options) -> LanguageModel:
    model = random(architecture(*blocks, norm=parent.model.architecture.norm), seed=9)
    start_from_parent(model, parent, **options)
    return model


def logits(model: LanguageModel) -> torch.Tensor:
    """Logits of the third of three segments."""
    memory = None
    with torch.no_grad():
        for segment in np.split(TEXT[:72].astype(np.int64), 3):
            output = model(torch.from_numpy(segment)[None], memory, mem_len=30)
            hidden, memory = output.hidden, output.state
        return model.logits(hidden)


def assert_same_sublayers(model: LanguageModel, other: LanguageModel, pairs: dict[int, int]) -> None:
    """Assert that blocks of one model have the weights of blocks of the other.  pairs: block: block of the other."""
    for block, source in pairs.items():
        states = (one.blocks[i].sublayer.state_dict() for one, i in ((model, block), (other, source)))
        own, wanted = states
        assert own.keys() == wanted.keys() and all(torch.equal(own[name], wanted[name]) for name in own), block


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("blocks", [BLOCKS, (MoE(24, 3, 1), FeedForward(24), MoE(24, 3, 2), Skip())])
def test_a_network_of_the_same_blocks_gives_the_same_bits(norm, blocks):
    parent = parent_of(*blocks, norm=norm)
    unchanged = random(architecture(*blocks, norm=norm), seed=9)
    assert not torch.equal(logits(unchanged), logits(parent.model))
    assert torch.equal(logits(started(parent, *blocks)), logits(parent.model))


def test_the_parent_does_not_change():
    model = random(architecture(*BLOCKS))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parent = Parent(model, TEXT, CONFIG)
    started(parent, Attention(2, 8), MoE(24, 3, 1), Skip(), FeedForward(24), Attention(1, 8))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())


def output(model: LanguageModel, position: int) -> torch.Tensor:
    """Output of a block for the second segment of every stream; position -1: of the embedding."""
    batches, blocks = StreamBatches(TEXT, CONFIG.batch, CONFIG.tgt_len), slice(position + 1)
    before, now = (model.embed(batches.batch_at(step)[0]) for step in (0, 1))
    with torch.no_grad():
        state = model.run_blocks(before, None, blocks, mem_len=CONFIG.mem_len)[1]
        return model.run_blocks(now, state, blocks, mem_len=CONFIG.mem_len)[0]


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_importances_of_heads_are_errors_without_the_head(norm):
    """Compared with running a copy of the network for each head, with the head's output set to zero."""
    parent = parent_of(*BLOCKS, norm=norm)
    found = {position: errors for position, errors in enumerate(parent.importances) if errors is not None}
    assert found.keys() == {0, 2, 4}
    for position, errors in found.items():
        whole, expected = output(parent.model, position), []
        for head in range(len(errors)):
            cut = copy.deepcopy(parent.model)
            cut.blocks[position].sublayer.output.weight[:, 8 * head : 8 * (head + 1)] = 0
            expected.append(((output(cut, position) - whole).square().sum() / whole.square().sum()).item())
        assert errors.tolist() == pytest.approx(expected, rel=1e-4)
        assert len(set(expected)) == len(expected)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_most_important_heads_are_copied_with_all_their_weights(count):
    parent = parent_of(*BLOCKS)
    source, errors = parent.model.blocks[2].sublayer, parent.importances[2].tolist()
    heads = sorted(sorted(range(4), key=lambda head: -errors[head])[:count])
    layer = started(parent, BLOCKS[0], BLOCKS[1], Attention(count, 8)).blocks[2].sublayer
    rows = [8 * head + i for head in heads for i in range(8)]
    for part in range(3):  # queries, keys and values
        own, wanted = layer.qkv.weight.chunk(3)[part], source.qkv.weight.chunk(3)[part]
        assert torch.equal(own, wanted[rows])
    assert torch.equal(layer.positions.weight, source.positions.weight[rows])
    assert torch.equal(layer.output.weight, source.output.weight[:, rows])
    assert torch.equal(layer.u, source.u[heads]) and torch.equal(layer.v, source.v[heads])


def test_by_importance_heads_are_sorted():
    parent = parent_of(*BLOCKS)
    block = random(architecture(Attention(4, 8)), seed=9).blocks[0]
    start_block(block, Attention(4, 8), 2, parent, by_importance=True)
    order = parent.importances[2].argsort(descending=True)
    assert order.tolist() != [0, 1, 2, 3]
    assert torch.equal(block.sublayer.u, parent.model.blocks[2].sublayer.u[order])


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_wider_layers_give_equal_logits(norm):
    parent = parent_of(*BLOCKS, norm=norm)
    wider = started(parent, Attention(7, 8), FeedForward(60), Attention(8, 8), FeedForward(24), Attention(3, 8))
    torch.testing.assert_close(logits(wider), logits(parent.model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_a_top_2_mixture_equals_the_copied_layer(norm):
    """The probabilities of the chosen experts sum to one."""
    parent = parent_of(*BLOCKS, norm=norm)
    model = started(parent, BLOCKS[0], MoE(24, 3, 2), BLOCKS[2], MoE(48, 4, 2), BLOCKS[4])
    torch.testing.assert_close(logits(model), logits(parent.model), rtol=1e-4, atol=1e-4)
    gate = random(model.architecture, seed=9).blocks[1].sublayer.gate
    assert torch.equal(model.blocks[1].sublayer.gate, gate), "the router keeps its random weights"


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("position", [1, 3])
def test_experts_of_a_top_1_mixture_are_scaled_by_the_mean_probability(norm, position):
    parent = parent_of(*BLOCKS, norm=norm)
    blocks = (*BLOCKS[:position], MoE(24, 3, 1), *BLOCKS[position + 1 :])
    block, source = started(parent, *blocks).blocks[position], parent.model.blocks[position].sublayer
    tokens = output(parent.model, position - 1)
    probability = F.linear(block.norm(tokens) if norm == "pre" else tokens, block.sublayer.gate).softmax(-1).amax(-1)
    experts = block.sublayer.experts
    for expert in range(3):
        assert torch.equal(experts.w1[expert], source.w1.weight) and torch.equal(experts.b1[expert], source.w1.bias)
        for own, copied in ((experts.w2[expert], source.w2.weight), (experts.b2[expert], source.w2.bias)):
            scale = (own / copied).flatten()
            assert scale.tolist() == pytest.approx([scale[0].item()] * len(scale), rel=1e-4)
            assert (scale[0] * probability).mean().item() == pytest.approx(1, rel=1e-4)
    assert probability.std() > 0.01


def test_weights_come_from_the_nearest_block_the_earlier_of_two():
    parent = parent_of(Attention(2, 8), FeedForward(24), Skip(), FeedForward(24), Attention(2, 8))
    model = started(parent, *[FeedForward(24)] * 5)
    assert_same_sublayers(model, parent.model, {0: 1, 1: 1, 2: 1, 3: 3, 4: 3})
    assert_same_sublayers(started(parent, *[Attention(2, 8)] * 5), parent.model, {0: 0, 1: 0, 2: 0, 3: 4, 4: 4})


def test_norms_embedding_and_head_are_the_parents():
    """A LayerNorm comes from the same position, or from the nearest block where the parent has none there."""
    parent = parent_of(Attention(2, 8), FeedForward(24), Skip(), FeedForward(24), Attention(2, 8))
    model = started(parent, FeedForward(24), MoE(24, 3, 1), Attention(1, 8), Skip(), FeedForward(48))
    for block, source in {0: 0, 1: 1, 2: 1, 4: 4}.items():
        for name in ("weight", "bias"):
            own, wanted = (getattr(one.blocks[i].norm, name) for one, i in ((model, block), (parent.model, source)))
            assert torch.equal(own, wanted), block
    own, wanted = model.state_dict(), parent.model.state_dict()
    surroundings = [name for name in own if not name.startswith("blocks.")]
    assert {"embedding.weight", "head.bias"} <= set(surroundings)
    assert all(torch.equal(own[name], wanted[name]) for name in surroundings)


@pytest.mark.parametrize(
    "kind", [FeedForward(24), MoE(24, 3, 1), MoE(24, 3, 2), Attention(2, 4)], ids=["dense", "top-1", "top-2", "narrow"]
)
def test_a_kind_that_the_parent_lacks_stays_random(kind):
    """Heads of another width are another kind."""
    parent = parent_of(Attention(2, 8), Attention(2, 8))
    model, unchanged = started(parent, Attention(2, 8), kind), random(architecture(Attention(2, 8), kind), seed=9)
    assert_same_sublayers(model, unchanged, {1: 1})
    assert torch.equal(model.blocks[1].norm.weight, parent.model.blocks[1].norm.weight)


def test_noise_on_experts_depends_only_on_the_generator():
    parent, blocks = parent_of(*BLOCKS), (*BLOCKS[:3], MoE(24, 3, 2), BLOCKS[4])

    def experts(noise: float, seed: int) -> torch.Tensor:
        torch.rand(seed)
        generator = torch.Generator().manual_seed(seed)
        return started(parent, *blocks, expert_noise=noise, generator=generator).blocks[3].sublayer.experts.w1

    exact, noisy = experts(0.0, 1), experts(0.25, 1)
    assert torch.equal(exact[0], exact[1]) and not torch.equal(noisy[0], noisy[1])
    assert torch.equal(noisy, experts(0.25, 1)) and not torch.equal(noisy, experts(0.25, 2))
    assert ((noisy - exact).std() / exact.std()).item() == pytest.approx(0.25, rel=0.1)
