"""Whole networks with sparse layers, eager and as a CUDA graph."""

from __future__ import annotations

import pytest
import torch

from planer.config import WorkloadConfig
from planer.latency.networks import random_model, random_tokens, timed_forward
from planer.runtime import Runtime
from planer.specs import Architecture, Attention, DynamicMoE, FeedForward, MoE
from planer.specs.sparse_attention import SparseAttention
from planer.specs.sparse_conv_attention import SparseConvAttention
from planer.specs.sparse_feed_forward import SparseFeedForward

CUDA = torch.device("cuda")
ATTENTION, DENSE = Attention(8, 64), FeedForward(2048)
BLOCKS = {
    "mixtures": (ATTENTION, MoE(2048, 8, 1), ATTENTION, MoE(2048, 8, 2), DENSE, DynamicMoE(2048, 16, 128)),
    "sparse": (SparseConvAttention(8, 64, 8), SparseFeedForward(2048, 16), SparseAttention(8, 64, 8)),
}


def workload(execution):
    return WorkloadConfig(batch=8, tgt_len=64, mem_len=64, attention="cached", execution=execution)


@pytest.mark.parametrize("blocks", BLOCKS.values(), ids=BLOCKS)
@pytest.mark.parametrize("attention", ["cached", "recompute"])
def test_a_cuda_graph_computes_what_eager_execution_does(attention, blocks):
    model = random_model(Architecture(204, 512, blocks), Runtime(CUDA, torch.bfloat16))
    tokens = random_tokens(model.architecture, workload("eager"), seed=1)
    nll = {
        execution: timed_forward(model, workload(execution), Runtime(CUDA, torch.bfloat16), attention, tokens)
        for execution in ("eager", "graph")
    }
    for tau in (0.0, 0.6):
        for layer in model.dynamic_blocks():
            layer.tau = tau
        eager, graph = nll["eager"]().clone(), nll["graph"]().clone()
        assert eager.isfinite().all()
        torch.testing.assert_close(graph, eager, rtol=1e-2, atol=1e-2)
