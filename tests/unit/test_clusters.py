"""Clusters of neurons of pretrained networks."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from planer.conversion import clusters
from planer.conversion.clusters import activation_profiles, apply_labels, cluster_sites
from planer.conversion.recording import Recorder, run, typical_passes, typical_tokens
from planer.conversion.sites import feed_forward_sites
from planer.errors import UserError

pytest.importorskip("transformers", reason="the package transformers is not installed")

from tests.unit.pretrained_networks import KINDS, network, task_of  # noqa: E402
from tests.unit.tiny_pretrained import LAYERS, NEURONS  # noqa: E402
from tests.unit.tiny_tasks import LENGTHS  # noqa: E402


def config(features: str, size: int = 4, restarts: int = 1) -> SimpleNamespace:
    return SimpleNamespace(expert_size=size, restarts=restarts, max_iterations=10, features=features, tokens=40)


@pytest.mark.parametrize("features", ["weights", "activations"])
@pytest.mark.parametrize("family", KINDS)
def test_labels_are_balanced_and_repeatable_and_do_not_change_the_network(family, features, tmp_path):
    model, task = network(family), task_of(family, tmp_path)
    labels, metrics = cluster_sites(model, task, config(features), 5)
    names = [site.name for site in feed_forward_sites(model)]
    assert labels["layer"].drop_duplicates().tolist() == names and len(names) == LAYERS
    assert set(labels.groupby(["layer", "expert"]).size()) == {4} and len(labels) == LAYERS * NEURONS
    assert set(metrics) == {"converted_layers", *(f"scatter_{name}" for name in names)}
    assert cluster_sites(network(family), task, config(features), 5)[0].equals(labels)
    before = task.scores(model, "test").nll
    apply_labels(model, labels)
    np.testing.assert_allclose(task.scores(model, "test").nll, before, rtol=1e-4)


def test_gated_layers_are_clustered_by_the_gate_weights(tmp_path):
    model, other = network("llama"), network("llama")
    with torch.no_grad():
        for site in feed_forward_sites(other):
            site.weights().w1.normal_()
    task = task_of("llama", tmp_path)
    first, second = (cluster_sites(one, task, config("weights"), 0)[0] for one in (model, other))
    assert first.equals(second)


def test_neurons_that_are_active_on_the_same_tokens_share_an_expert(tmp_path):
    """Neurons j and j + 12 are copies that differ in scale."""
    model = network("gpt2")
    with torch.no_grad():
        for site in feed_forward_sites(model):
            weights = site.weights()
            weights.w1[12:], weights.b1[12:] = weights.w1[:12], weights.b1[:12]
            weights.w2[12:] = -3 * weights.w2[:12]
    labels = cluster_sites(model, task_of("gpt2", tmp_path), config("activations", 2, restarts=5), 0)[0]
    for _, table in labels.groupby("layer"):
        experts = table.sort_values("neuron")["expert"].to_numpy()
        assert (experts[:12] == experts[12:]).mean() > 0.9


def test_profiles_keep_the_angles_between_neurons(tmp_path, monkeypatch):
    """With all dimensions they are exact; with fewer they are the best approximation, by singular values."""
    model, task = network("bert"), task_of("bert", tmp_path)
    parts = []
    for recorder, typical in typical_passes(model, task, "train", 30, 1):
        parts += [seen.h[typical].abs() for site, seen in recorder.take() if site.name.endswith("1")]
    unit = torch.nn.functional.normalize(torch.cat(parts).T, dim=1)
    assert unit.shape == (NEURONS, 30)
    profiles = activation_profiles(model, task, 30, 1)[1]
    torch.testing.assert_close(profiles @ profiles.T, unit @ unit.T, rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(clusters, "RANK", 5)
    u, s, _ = torch.linalg.svd(unit)
    best = (u[:, :5] * s[:5]) @ (u[:, :5] * s[:5]).T
    few = activation_profiles(model, task, 30, 1)[1]
    assert few.shape == (NEURONS, 5)
    torch.testing.assert_close(few @ few.T, best, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_several_processes_give_the_same_labels(tmp_path, monkeypatch):
    model, task = network("vit"), task_of("vit", tmp_path)
    alone = cluster_sites(model, task, config("weights"), 0)[0]
    monkeypatch.setattr(clusters, "WORTH_PROCESSES", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert cluster_sites(model, task, config("weights"), 0)[0].equals(alone)


def test_an_expert_size_that_does_not_divide_is_refused(tmp_path):
    with pytest.raises(UserError, match="expert_size is 5; it must divide the neurons of vit.layers.0.mlp, which are"):
        cluster_sites(network("vit"), task_of("vit", tmp_path), config("weights", 5), 0)


@pytest.mark.parametrize(("family", "tokens"), [("bert", sum(LENGTHS["train"])), ("gpt2", 7 * 7), ("vit", 8 * 5)])
def test_padding_and_first_tokens_of_decoders_are_left_out(family, tokens, tmp_path):
    model, task = network(family), task_of(family, tmp_path)
    passes = [int(typical.sum()) for _, typical in typical_passes(model, task, "train", 10**6, 0)]
    assert sum(passes) == tokens
    assert sum(int(typical.sum()) for _, typical in typical_passes(model, task, "train", 11, 0)) == 11


@pytest.mark.parametrize("family", KINDS)
def test_a_recorder_has_inputs_and_activations(family, tmp_path):
    model, task = network(family), task_of(family, tmp_path)
    batch = next(task.batches("valid"))
    with Recorder(model).recording() as recorder:
        run(model, batch)
        layers = list(recorder.take())
    assert [site.name for site, _ in layers] == [site.name for site in feed_forward_sites(model)]
    for site, seen in layers:
        torch.testing.assert_close(seen.h, site.hidden(seen.x))
        assert seen.x.shape[:2] == typical_tokens(model, task, batch).shape
    run(model, batch)
    assert not recorder.seen, "nothing is recorded outside the context"
