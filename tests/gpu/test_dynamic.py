"""dynamic_ffn compiled for the GPU of this machine."""

from __future__ import annotations

import functools

import pytest
import torch

pytest.importorskip("triton")

from planer.kernels.dynamic_ffn import dynamic_ffn  # noqa: E402
from tests.kernels.checks import DYNAMIC, TOLERANCE, Dynamic, dynamic_error  # noqa: E402

CUDA = torch.device("cuda")
masked_dense = functools.partial(dynamic_ffn, backend="masked_dense")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layer", DYNAMIC.values(), ids=DYNAMIC.keys())
def test_outputs_equal_the_reference(layer, dtype):
    assert dynamic_error(layer, dtype, CUDA) <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 6, 16, 32, 64, 128])
@pytest.mark.parametrize("tokens", [7, 4096, 20_000])
@pytest.mark.parametrize("activation", ["relu", "swiglu"])
def test_outputs_at_the_sizes_of_the_paper(tokens, size, activation, dtype):
    layer = Dynamic(tokens, 512, size, 2048 // size, 0.05, activation)
    tolerance = {torch.float32: 5e-6, torch.float16: 2e-3, torch.bfloat16: 8e-3}[dtype]
    assert dynamic_error(layer, dtype, CUDA, masked_dense) <= tolerance


def arguments():
    layer = Dynamic(tokens=4096, d_model=512, size=16, experts=128, share=0.05)
    return *(value.bfloat16() for value in layer.values(CUDA)), layer.mask(CUDA)


def test_a_cuda_graph_reads_the_mask_and_nothing_synchronises():
    *values, mask = arguments()
    with torch.inference_mode():
        dynamic_ffn(*values, mask, backend="triton")
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            dynamic_ffn(*values, mask, backend="triton")
        finally:
            torch.cuda.set_sync_debug_mode("default")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = dynamic_ffn(*values, mask, backend="triton")
        for change in (torch.ones_like(mask), torch.zeros_like(mask), torch.rand(mask.shape, device=CUDA) < 0.2):
            mask.copy_(change)
            graph.replay()
            assert y.equal(dynamic_ffn(*values, mask, backend="triton"))


def test_the_operator_is_well_formed_and_compiles():
    *values, mask = arguments()
    tests = "test_schema", "test_faketensor", "test_aot_dispatch_dynamic"
    torch.library.opcheck(torch.ops.planer.dynamic_ffn, (*values, mask, "triton", "relu"), test_utils=tests)
    compiled = torch.compile(functools.partial(dynamic_ffn, backend="triton"), fullgraph=True)
    with torch.inference_mode():
        assert compiled(*values, mask).equal(dynamic_ffn(*values, mask, backend="triton"))
