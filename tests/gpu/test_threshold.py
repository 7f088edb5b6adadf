"""neuron_threshold compiled for the GPU of this machine."""

from __future__ import annotations

import functools

import pytest
import torch

pytest.importorskip("triton")

from planer.kernels.neuron_threshold import neuron_threshold  # noqa: E402
from tests.kernels.checks import THRESHOLD, TOLERANCE, Threshold, threshold_error  # noqa: E402

CUDA = torch.device("cuda")
masked_dense = functools.partial(neuron_threshold, backend="masked_dense")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layer", THRESHOLD.values(), ids=THRESHOLD.keys())
def test_outputs_and_counts_equal_the_reference(layer, dtype):
    assert threshold_error(layer, dtype, CUDA) <= 2 * TOLERANCE[dtype]


@pytest.mark.parametrize("score", ["gate", "product"])
@pytest.mark.parametrize(("width", "neurons"), [(576, 1536), (2048, 8192), (4096, 11_008)])
def test_outputs_of_the_sizes_of_pretrained_networks(width, neurons, score):
    layer = Threshold(16, width, neurons, 0.3, score)
    assert threshold_error(layer, torch.float32, CUDA, masked_dense) <= 5e-6


def test_nothing_synchronises():
    *values, limits = (value.bfloat16() for value in Threshold(4, 576, 1536).values(CUDA))
    with torch.inference_mode():
        neuron_threshold(*values, limits.float(), "gate", "triton", "swiglu")
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            neuron_threshold(*values, limits.float(), "gate", "triton", "swiglu")
        finally:
            torch.cuda.set_sync_debug_mode("default")
