"""expert_ffn and routing compiled for the GPU of this machine."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch

pytest.importorskip("triton")

from planer.kernels.expert_ffn import expert_ffn  # noqa: E402
from planer.kernels.routing import linear_fp32, plan, plan_reference, route, top_k  # noqa: E402
from tests.kernels.checks import EXPERTS, Layer, check, results, rounded  # noqa: E402
from tests.unit.numerics import normalised_error  # noqa: E402

CUDA = torch.device("cuda")
PLANER = Layer(tokens=4096, d_model=512, d_inner=2048, experts=8)
loop = functools.partial(expert_ffn, backend="loop")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layer", EXPERTS.values(), ids=EXPERTS.keys())
def test_outputs_and_gradients_equal_the_reference(layer, dtype):
    check(layer, dtype, CUDA)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "layer",
    [
        dataclasses.replace(PLANER, k=1),
        dataclasses.replace(PLANER, k=2),
        dataclasses.replace(PLANER, k=1, tokens=12_288, routing="one_hot"),
        dataclasses.replace(PLANER, k=2, tokens=12_288, routing="half"),
        dataclasses.replace(PLANER, k=2, tokens=300, activation="gelu"),
        dataclasses.replace(PLANER, k=1, activation="swiglu"),
        dataclasses.replace(PLANER, k=0, tokens=1000),
    ],
    ids=str,
)
def test_outputs_and_gradients_at_the_sizes_of_the_paper(layer, dtype):
    tolerance = {torch.float32: 5e-6, torch.float16: 2e-3, torch.bfloat16: 8e-3}[dtype]
    check(layer, dtype, CUDA, tolerance=tolerance, oracle=loop)


def test_tf32_follows_the_setting_of_pytorch():
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    layer = dataclasses.replace(PLANER, k=1)
    values, gate = rounded(layer, torch.float32, CUDA)
    pairs = dataclasses.replace(layer.pairs(CUDA), gate=gate)
    y = []
    try:
        for matmul.allow_tf32 in (False, True):
            y.append(expert_ffn(*values.values(), pairs, backend="triton"))
    finally:
        matmul.allow_tf32 = before
    assert 1e-5 < normalised_error(y[1], y[0]) < 2e-3


def test_offsets_beyond_32_bits():
    """More than 2^31 hidden activations: the last tokens have the results that they have alone."""
    tokens, last = 33_000, 200
    layer = Layer(tokens=tokens, d_model=64, d_inner=32_768, experts=2, k=2, gated=False)
    values, _ = rounded(layer, torch.bfloat16, CUDA)
    pairs = layer.pairs(CUDA)
    assert tokens * 2 * layer.d_inner > 2**31
    dy = torch.randn(tokens, 64, device=CUDA, dtype=torch.bfloat16)
    whole = results(expert_ffn, layer, values, None, pairs, dy, backend="triton")
    few = dataclasses.replace(pairs, token=pairs.token[: 2 * last], expert=pairs.expert[-2 * last :], num_tokens=last)
    values["x"] = values["x"].detach()[-last:].requires_grad_()
    alone = results(expert_ffn, layer, values, None, few, dy[-last:], backend="loop")
    for name in ("y", "dx"):
        assert normalised_error(whole[name][-last:], alone[name]) < 2e-2
    assert all(value.isfinite().all() for value in whole.values())


@pytest.mark.parametrize("k", [1, 2])
def test_equal_bits_in_every_run_and_in_every_order_of_tokens(k):
    layer = dataclasses.replace(PLANER, k=k)
    values, gate = rounded(layer, torch.bfloat16, CUDA)
    pairs = layer.pairs(CUDA)
    dy = torch.randn(layer.tokens, layer.d_model, device=CUDA, dtype=torch.bfloat16)
    first, second = (results(expert_ffn, layer, values, gate, pairs, dy, backend="triton") for _ in range(2))
    assert all(first[name].equal(second[name]) for name in first)
    order = torch.randperm(layer.tokens, device=CUDA)
    expert = pairs.expert.view(-1, k)[order].flatten()
    gate = gate.detach().view(-1, k)[order].flatten().requires_grad_()
    values["x"] = values["x"].detach()[order].requires_grad_()
    pairs = dataclasses.replace(pairs, expert=expert)
    shuffled = results(expert_ffn, layer, values, gate, pairs, dy[order], backend="triton")
    assert shuffled["y"].equal(first["y"][order])
    assert shuffled["dx"].equal(first["dx"][order])


@pytest.mark.parametrize("routing", ["random", "one_hot", "half"])
@pytest.mark.parametrize("k", [0, 1, 2])
@pytest.mark.parametrize(("tokens", "experts"), [(0, 8), (1, 8), (12_288, 8), (32_768, 1), (3000, 128)])
def test_the_plan_equals_the_reference(tokens, experts, k, routing):
    if k > experts or (experts == 1 and routing != "random"):
        pytest.skip("no such routing")
    pairs = Layer(tokens=tokens, experts=experts, k=k, routing=routing).pairs(CUDA)
    for ours, expected in zip(vars(plan(pairs)).values(), vars(plan_reference(pairs)).values(), strict=True):
        assert ours.dtype == expected.dtype
        assert ours.equal(expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("k", [1, 2, 8])
def test_the_fused_router_equals_pytorch(k, dtype):
    x, weight = (torch.randn(n, 512, device=CUDA).to(dtype) for n in (12_289, 8))
    pairs, _, found = route(x, weight, k, probabilities=False)
    logits = linear_fp32(x, weight)
    expected, _ = top_k(logits, k)
    best = logits.double().sort(descending=True).values
    clear = ((best[:, : min(k, 7)] - best[:, 1 : min(k, 7) + 1]).amin(dim=1) > 1e-3).repeat_interleave(k)
    assert clear.float().mean() > 0.9
    assert pairs.expert[clear].equal(expected.expert[clear])
    torch.testing.assert_close(pairs.gate[clear], expected.gate[clear], rtol=1e-4, atol=1e-5)
    for ours, reference in zip(vars(found).values(), vars(plan_reference(pairs)).values(), strict=True):
        assert ours.equal(reference)
    torch.library.opcheck(torch.ops.planer.route, (x, weight, k))


def mixture(x, logits, weights, k=2):
    pairs, _ = top_k(logits, k)
    return expert_ffn(x, *weights, pairs, backend="triton")


def arguments(dtype=torch.bfloat16):
    values = PLANER.values(CUDA)
    x, *weights = (value.to(dtype) for value in values.values())
    logits = torch.randn(PLANER.tokens, PLANER.experts, device=CUDA)
    return x, logits, weights


@pytest.mark.parametrize("k", [1, 2])
def test_nothing_synchronises_with_the_device(k):
    x, logits, weights = arguments()
    leaves = [t.requires_grad_() for t in (x, logits, *weights)]
    mixture(x, logits, weights, k).sum().backward()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        mixture(x, logits, weights, k).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(leaf.grad.isfinite().all() for leaf in leaves)


@pytest.mark.parametrize("k", [1, 2])
def test_a_cuda_graph_follows_the_routing(k):
    x, logits, weights = arguments()
    with torch.inference_mode():
        with torch.cuda.stream(torch.cuda.Stream()):
            mixture(x, logits, weights, k)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = mixture(x, logits, weights, k)
        one_hot = torch.zeros_like(logits)
        one_hot[:, 5] = 50
        for change in (torch.randn_like(logits), one_hot, torch.randn_like(logits)):
            logits.copy_(change)
            graph.replay()
            assert y.equal(mixture(x, logits, weights, k))


def test_the_operators_are_well_formed():
    x, logits, weights = arguments(torch.float32)
    pairs, _ = top_k(logits, 2)
    torch.library.opcheck(torch.ops.planer.plan, (pairs.expert, pairs.token, PLANER.tokens, PLANER.experts, 2))
    found = plan(pairs)
    leaves = [t.detach().requires_grad_() for t in (x, *weights, pairs.gate)]
    torch.library.opcheck(
        torch.ops.planer.expert_ffn, (*leaves, *vars(found).values(), None, 2, "relu", "triton", True)
    )


def test_torch_compile_makes_one_graph_with_equal_results():
    x, logits, weights = arguments()
    compiled = torch.compile(mixture, fullgraph=True)
    for tensors in ((x, logits, weights), arguments()):
        leaves = [t.detach().requires_grad_() for t in (tensors[0], *tensors[2])]
        results = []
        for function in (compiled, mixture):
            y = function(leaves[0], tensors[1], leaves[1:])
            results.append((y, *torch.autograd.grad(y.float().square().sum(), leaves)))
        for ours, expected in zip(*results, strict=True):
            assert normalised_error(ours, expected) < 1e-2
