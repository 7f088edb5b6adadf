"""The Triton kernels of neuron_threshold in the interpreter."""

from __future__ import annotations

import pytest
import torch

from planer.kernels.neuron_threshold import neuron_threshold
from planer.kernels.neuron_threshold.triton import layer as module
from tests.kernels.checks import THRESHOLD, TOLERANCE, Threshold, threshold_error


@pytest.fixture(params=[1, 3], autouse=True)
def parts(request, monkeypatch):
    """The number of programs that share the neurons of a part of the output."""
    monkeypatch.setattr(module, "SPLITS", request.param)


@pytest.mark.parametrize("layer", THRESHOLD.values(), ids=THRESHOLD.keys())
def test_outputs_and_counts_equal_the_reference(layer):
    assert threshold_error(layer, torch.float32) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize("score", ["gate", "product"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype, score):
    assert threshold_error(Threshold(score=score), dtype) <= 2 * TOLERANCE[dtype]


def run(layer: Threshold, **changes):
    named = dict(zip(("x", "w1", "b1", "w2", "b2", "limits"), (v.float() for v in layer.values()), strict=True))
    return neuron_threshold(**named | changes, score=layer.score, backend="triton", activation=layer.activation)


@pytest.mark.parametrize("score", ["gate", "product"])
def test_a_limit_of_zero_equals_the_dense_layer_and_an_infinite_one_runs_nothing(score):
    layer = Threshold(score=score)
    x, w1, b1, w2, b2, limits = layer.values()
    z = x @ w1.T + b1
    dense = torch.nn.functional.silu(z[:, :70]) * z[:, 70:] @ w2 + b2
    y, counts = run(layer, limits=torch.zeros(70))
    torch.testing.assert_close(y.double(), dense, rtol=1e-5, atol=1e-5)
    assert counts.tolist() == [70] * 21
    y, counts = run(layer, limits=torch.full((70,), torch.inf))
    assert torch.equal(y, b2.float().expand(21, -1)) and not counts.any()


def test_a_token_of_nan_gives_nan_and_changes_no_other():
    layer = Threshold()
    x = layer.values()[0].float()
    expected, _ = run(layer)
    x[4, 0] = torch.nan
    y, counts = run(layer, x=x)
    assert y[4].isnan().all() and counts[4] == 70
    others = [t for t in range(21) if t != 4]
    assert torch.equal(y[others], expected[others])


@pytest.mark.parametrize("score", ["gate", "product"])
def test_no_weights_of_neurons_that_no_token_runs_are_read(score):
    """They are NaN here, and so would be the output."""
    layer = Threshold(score=score)
    x, w1, b1, w2, b2, limits = (value.float() for value in layer.values())
    expected, _ = run(layer, limits=limits.index_fill(0, torch.arange(0, 70, 3), torch.inf))
    w2[::3] = torch.nan
    if score == "gate":
        w1[70::3] = torch.nan
    y, _ = run(layer, w1=w1, w2=w2, limits=limits.index_fill(0, torch.arange(0, 70, 3), torch.inf))
    assert torch.equal(y, expected)


def test_no_tokens():
    y, counts = run(Threshold(), x=torch.zeros(0, 24))
    assert y.shape == (0, 24) and counts.shape == (0,) and counts.dtype == torch.int64
