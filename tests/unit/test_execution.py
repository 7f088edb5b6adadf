"""Execution modes: eager, compiled and graph."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch._dynamo
import torch._inductor.config
from torch._dynamo.utils import counters
from toy import experiment

from planer.errors import UserError
from planer.latency import execution as execution_module
from planer.latency.execution import check_execution, executable, prepared
from planer.latency.networks import Pool, random_model, random_tokens, timed_forward
from planer.runtime import Runtime
from planer.specs import Attention, DynamicMoE, FeedForward, MoE, Skip

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")
CONFIG = experiment()
VOCABULARY = 50
SELF, DENSE, MIXTURE, SPLIT = Attention(2, 16), FeedForward(64), MoE(64, 4, 2), DynamicMoE(64, 8, 4)
BLOCKS = (SELF, DENSE, Skip(), MIXTURE, SELF, DENSE, SPLIT)


def workload(execution: str):
    return dataclasses.replace(CONFIG.workload, execution=execution)


def nll(model, execution: str, attention: str = "cached", device: torch.device = CPU):
    tokens = random_tokens(CONFIG.model.architecture(VOCABULARY, ()), CONFIG.workload, seed=5)
    return timed_forward(model, workload(execution), Runtime(device), attention, tokens)


@pytest.fixture(scope="module")
def model():
    return random_model(CONFIG.model.architecture(VOCABULARY, BLOCKS), Runtime(seed=1))


@pytest.fixture
def codes():
    """A counter of compiled graphs, from zero."""
    torch._dynamo.reset()
    counters.clear()
    return counters["stats"]


@pytest.mark.parametrize("attention", ["cached", "recompute"])
def test_compiled_networks_equal_eager_ones(model, attention):
    compiled = nll(model, "compiled", attention)
    for tau in (0.0, 0.5, 0.0):
        model.dynamic_blocks()[0].tau = tau
        torch.testing.assert_close(compiled(), nll(model, "eager", attention)(), rtol=1e-4, atol=1e-5)


def test_blocks_of_one_kind_are_compiled_once(codes):
    """In any number and order, also in later calls."""
    pool = Pool(
        CONFIG.model.architecture(VOCABULARY, ()), {DENSE: 4, MIXTURE: 2, SELF: 2}, workload("compiled"),
        Runtime(), ["cached"],
    )  # fmt: skip
    calls = [pool.network((DENSE,), "cached"), pool.network((SELF, MIXTURE), "cached")]
    first = codes["unique_graphs"]
    assert first > 0
    for routing in ("balanced", "skewed", "one"):
        calls.append(pool.network((DENSE, MIXTURE, SELF, DENSE, DENSE, MIXTURE, SELF), "cached", routing=routing))
    for call in calls:
        call()
    assert codes["unique_graphs"] == first
    assert not counters["graph_break"], "every block is one graph"


def test_compiled_blocks_have_the_weights_of_the_model(model):
    """Skips and converted layers are not compiled."""
    for block, spec in zip(model.blocks, BLOCKS, strict=True):
        assert executable(block, "eager") is executable(block, "graph") is block
        made = executable(block, "compiled")
        assert (made is block) == isinstance(spec, (Skip, DynamicMoE))
        assert list(made.parameters()) == list(block.parameters())


def test_no_compiler_is_one_line(model, codes):
    absent = {"cpp.cxx": ("/no/compiler",), "force_disable_caches": True}
    with (
        torch._inductor.config.patch(absent),
        pytest.raises(
            UserError, match="compiled failed: .*/no/compiler.*; install a C.. compiler, or use eager"
        ) as line,
    ):
        nll(model, "compiled")
    assert "\n" not in str(line.value)


def test_too_many_kinds_of_compiled_blocks_are_an_error(codes, monkeypatch):
    """PyTorch would run them eagerly, and their times would count as compiled."""
    monkeypatch.setattr(execution_module, "CODES", 1)
    pool = Pool(
        CONFIG.model.architecture(VOCABULARY, ()), {DENSE: 1, FeedForward(32): 1}, workload("compiled"),
        Runtime(), ["cached"],
    )  # fmt: skip
    pool.network((DENSE,), "cached")
    with pytest.raises(UserError, match="compiled failed"):
        pool.network((FeedForward(32),), "cached")


def test_graphs_need_cuda(model):
    with pytest.raises(UserError, match="graph needs a CUDA device"):
        check_execution("graph", CPU)
    for make in (lambda: nll(model, "graph"), lambda: prepared(lambda: torch.zeros(()), "graph", CPU)):
        with pytest.raises(UserError, match="graph needs a CUDA device"):
            make()


def test_alternating_attention_modes_compute_positions_once(model, monkeypatch):
    """An evaluation times them alternately on one model."""
    import planer.models.transformer

    calls = [nll(model, "eager", attention) for attention in ("cached", "recompute")]
    for call in calls:
        call()
    made = []
    monkeypatch.setattr(planer.models.transformer, "sinusoids", lambda *arguments: made.append(arguments))
    for call in calls * 2:
        call()
    assert not made


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("attention", ["cached", "recompute"])
def test_graphs_equal_eager_networks(attention):
    """Also after the capture of another network, and at every threshold."""
    device = torch.device("cuda", 0)
    blocks = tuple(block for block in BLOCKS if block is not MIXTURE)
    networks = [
        random_model(CONFIG.model.architecture(VOCABULARY, blocks), Runtime(device, seed=seed)) for seed in (1, 2)
    ]
    replays = [nll(network, "graph", attention, device) for network in networks]
    for tau in (0.0, 0.5, 0.2, 0.5, 0.0):
        for network, replay in zip(networks, replays, strict=True):
            network.dynamic_blocks()[0].tau = tau
            torch.testing.assert_close(replay(), nll(network, "eager", attention, device)(), rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_networks_that_synchronise_cannot_be_captured():
    device = torch.device("cuda", 0)
    with pytest.raises(UserError, match="graph failed: .*; the network waits for the GPU"):
        prepared(lambda: torch.ones(1, device=device) * torch.ones(1, device=device).item(), "graph", device)
