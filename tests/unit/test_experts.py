"""Splitting the feed-forward layers of our networks into experts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planer.config import ClusterConfig
from planer.conversion.experts import cluster_neurons, scatter, split
from planer.conversion.routers import with_routers
from planer.models import LanguageModel, initialise, load, save
from planer.specs import Architecture, Attention, DynamicMoE, FeedForward, MoE, Skip

pytestmark = pytest.mark.slow
CONFIG = ClusterConfig(expert_size=4, restarts=2, max_iterations=20)
BLOCKS = (Attention(2, 4), FeedForward(32), Skip(), MoE(8, 2, 1), FeedForward(16))


def tiny(*blocks, norm: str = "post") -> LanguageModel:
    model = LanguageModel(Architecture(11, 8, blocks, norm=norm, init_std=0.3))
    initialise(model, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for block in model.feed_forward_blocks():  # with biases of zero, a lost one would change nothing
            block.w1.bias.normal_(generator=torch.Generator().manual_seed(1))
            block.w2.bias.normal_(generator=torch.Generator().manual_seed(2))
    return model.eval()


def rows_of_directions(groups: int, size: int, width: int = 12) -> tuple[torch.Tensor, np.ndarray]:
    """Rows of different lengths in a few directions, in random order, and the number of each row's direction."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.randperm(groups * size, generator=generator) % groups
    directions = torch.randn(groups, width, generator=generator)
    rows = directions[truth] + 0.05 * torch.randn(groups * size, width, generator=generator)
    return rows * torch.logspace(-2, 2, groups * size)[:, None], truth.numpy()


def outputs_of(model: LanguageModel, tau: float = 0.0) -> tuple[torch.Tensor, list[int]]:
    """Hidden states of two consecutive segments, and the number of experts that each split layer executed."""
    for block in model.dynamic_blocks():
        block.tau = tau
    tokens = torch.randint(11, (3, 10), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        first = model(tokens[:, :5], mem_len=4)
        second = model(tokens[:, 5:], first.state, mem_len=4, wants=("executed",))
    executed = [int(aux["executed"]) for aux in second.aux if aux]
    return torch.cat((first.hidden, second.hidden), 1), executed


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**31 - 1))
@settings(max_examples=25)
def test_clusters_have_exactly_the_given_size(groups, size, seed):
    w1 = torch.randn(groups * size, 3, generator=torch.Generator().manual_seed(seed))
    labels = cluster_neurons(w1, size, seed, restarts=1, max_iterations=5)
    assert np.bincount(labels, minlength=groups).tolist() == [size] * groups


@pytest.mark.parametrize(("groups", "size"), [(2, 16), (8, 4), (16, 2)])
def test_neurons_of_one_direction_form_one_expert(groups, size):
    w1, truth = rows_of_directions(groups, size)
    labels = cluster_neurons(w1, size, seed=0, restarts=5, max_iterations=50)
    assert all(len(np.unique(truth[labels == c])) == 1 for c in range(groups))
    assert scatter(w1, labels) < 0.05
    shuffled = np.random.default_rng(0).permutation(labels)
    assert scatter(w1, shuffled) > 0.3


def test_clusters_ignore_the_length_of_rows_and_follow_the_seed():
    w1 = torch.randn(48, 6, generator=torch.Generator().manual_seed(0))
    labels = [cluster_neurons(w1 * scale, 4, seed, 1, 20) for seed, scale in ((0, 1.0), (0, 1.0), (0, 8.0), (1, 1.0))]
    assert np.array_equal(labels[0], labels[1])
    assert np.array_equal(labels[0], labels[2])
    assert not np.array_equal(labels[0], labels[3])


def test_more_restarts_give_more_compact_clusters():
    w1 = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    loose = [scatter(w1, cluster_neurons(w1, 4, 0, restarts, 20)) for restarts in (1, 8)]
    assert loose[1] <= loose[0] + 1e-3  # k-means ranks by costs rounded to a thousandth


@pytest.mark.parametrize("size", [1, 4, 16])
@pytest.mark.parametrize("dead", [6, 16])
def test_neurons_of_zero_are_clustered(size, dead):
    w1 = torch.randn(16, 5, generator=torch.Generator().manual_seed(0))
    w1[:dead] = 0
    labels = cluster_neurons(w1, size, 0, 2, 10)
    assert np.bincount(labels).tolist() == [size] * (16 // size)
    assert 0 <= scatter(w1, labels) <= 1


def test_size_must_divide_the_neurons():
    with pytest.raises(ValueError, match="expert_size is 5; it must divide the number of neurons, 12"):
        cluster_neurons(torch.randn(12, 3), 5, 0, 1, 10)
    with pytest.raises(ValueError, match="expert_size is 3"):
        split(tiny(FeedForward(16)), ClusterConfig(3, 1, 5), 0)


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("size", [1, 4, 16])
def test_split_network_gives_equal_outputs(norm, size):
    model = tiny(*BLOCKS, norm=norm)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    converted, labels, metrics = split(model, ClusterConfig(size, 2, 20), seed=0)
    assert converted.architecture.blocks[1] == DynamicMoE(32, size)
    assert converted.architecture.blocks[4] == DynamicMoE(16, size)
    assert [block for i, block in enumerate(converted.architecture.blocks) if i not in (1, 4)] == [
        block for i, block in enumerate(BLOCKS) if i not in (1, 4)
    ]
    expected = outputs_of(model)[0]
    torch.testing.assert_close(outputs_of(converted)[0], expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="tau is 0.9, but the layer has no router"):
        outputs_of(converted, tau=0.9)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    assert metrics["converted_layers"] == 2
    assert not converted.training


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_experts_and_one_bias_add_up_to_the_dense_layer(dtype, tolerance):
    model = tiny(FeedForward(32))
    converted, labels, _ = split(model, CONFIG, 0)
    dense, block = model.to(dtype).blocks[0].sublayer, converted.to(dtype).blocks[0].sublayer
    x = torch.randn(7, 8, dtype=dtype, generator=torch.Generator().manual_seed(3))
    total = block.b2.clone()
    for c in range(8):
        own = slice(4 * c, 4 * c + 4)
        total = total + torch.relu(x @ block.w1[own].T + block.b1[own]) @ block.w2[own]
        neurons = labels.query("expert == @c")["neuron"].tolist()
        assert neurons == sorted(neurons)
        assert torch.equal(block.w1[own], dense.w1.weight[neurons])
        assert torch.equal(block.w2[own], dense.w2.weight[:, neurons].T)
    torch.testing.assert_close(total, dense(x)[0], rtol=tolerance, atol=tolerance)


def test_labels_are_a_table_of_all_layers_and_reproducible():
    runs = [split(tiny(*BLOCKS), CONFIG, seed)[1] for seed in (4, 4, 5)]
    assert list(runs[0].columns) == ["layer", "neuron", "expert"]
    assert runs[0].dtypes.astype(str).tolist() == ["int64"] * 3
    assert runs[0].groupby("layer").size().to_dict() == {1: 32, 4: 16}
    assert runs[0].equals(runs[1])
    assert not runs[0].equals(runs[2])


def test_higher_thresholds_execute_fewer_experts_at_every_scale_of_routers():
    converted = with_routers(split(tiny(*BLOCKS), CONFIG, 0)[0], 6)
    with torch.no_grad():
        for block in converted.dynamic_blocks():
            block.router.v1.normal_(generator=torch.Generator().manual_seed(6))
            block.router.v2.normal_(generator=torch.Generator().manual_seed(7))
    taus = [0.0, 0.01, 0.1, 0.3, 0.6, 0.9, 1.0]
    outputs, executed = zip(*(outputs_of(converted, tau) for tau in taus), strict=True)
    for layer, experts in ((0, 8), (1, 4)):
        counts = [row[layer] for row in executed]
        assert counts == sorted(counts, reverse=True)
        assert counts[0] == 15 * experts and counts[-1] == 15
    assert (outputs[0] - outputs[-1]).abs().max() > 0.01
    with torch.no_grad():
        for block in converted.dynamic_blocks():
            block.router.v2.mul_(32.0)
    for tau, output, count in zip(taus, outputs, executed, strict=True):
        scaled, scaled_count = outputs_of(converted, tau)
        assert scaled_count == count
        assert torch.equal(scaled, output)


def test_split_network_survives_saving(tmp_path):
    converted, _, _ = split(tiny(*BLOCKS), CONFIG, 0)
    save(converted, tmp_path)
    assert torch.equal(outputs_of(load(tmp_path))[0], outputs_of(converted)[0])


def test_network_without_feed_forward_layers_is_returned():
    model = tiny(Attention(2, 4), MoE(8, 2, 1))
    same, labels, metrics = split(model, CONFIG, 0)
    assert same is model
    assert labels.empty and list(labels.columns) == ["layer", "neuron", "expert"]
    assert metrics == {"converted_layers": 0, "reason": metrics["reason"]}
