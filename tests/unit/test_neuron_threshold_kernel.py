"""neuron_threshold: every backend against the reference in double precision."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from numerics import FORMULAS, normalised_error
from torch.utils.flop_counter import FlopCounterMode

from planer.kernels.activations import ALL, GATED, factors
from planer.kernels.cpp import build
from planer.kernels.neuron_threshold import SCORES, neuron_threshold, neuron_threshold_reference

CPP, FUSED = (
    pytest.param(name, marks=pytest.mark.skipif("not available()", reason="needs a C++ compiler"))
    for name in ("cpp", "fused")
)
BACKENDS = ["masked_dense", FUSED, CPP]
TOLERANCE = 1e-6


def available():
    return build.available()


def arguments(tokens, neurons, width=37, activation="swiglu", share=0.5, score="product"):
    """x, w1, b1, w2, b2 in single precision, and the limits that this share of all values exceeds.

    Limits differ between neurons.  No value is within rounding of its limit.
    """
    generator = torch.Generator().manual_seed(tokens + neurons)
    rows = factors(activation) * neurons
    shapes = (tokens, width), (rows, width), (rows,), (neurons, width), (width,)
    x, w1, b1, w2, b2 = (torch.randn(shape, generator=generator) for shape in shapes)
    values = [x, w1 / width**0.5, b1, w2 / neurons**0.5, b2]
    z = F.linear(*(v.double() for v in values[:3]))
    if score == "gate" and activation in GATED:
        compared = FORMULAS[GATED[activation]](z[:, :neurons]).abs()
    else:
        compared = FORMULAS[activation](z).abs()
    ordered = compared.sort(dim=0).values  # [N, F]
    dropped = min(max(1, round((1 - share) * tokens)), tokens - 1)
    return values, ordered[dropped - 1 : dropped + 1].mean(0).float()


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@pytest.mark.parametrize("activation", ALL)
@pytest.mark.parametrize("score", SCORES)
def test_outputs_and_counts_equal_the_reference(backend, activation, score):
    for tokens, share in itertools.product((2, 7, 13, 31), (0.2, 0.7)):
        values, limits = arguments(tokens, 70, activation=activation, share=share, score=score)
        y, executed = neuron_threshold(*values, limits, score, backend, activation)
        doubles = [v.double() for v in (*values, limits)]
        expected, counted = neuron_threshold_reference(*doubles, score, activation)
        assert normalised_error(y, expected) < TOLERANCE
        assert executed.dtype == torch.int64 and torch.equal(executed, counted)
        assert 0 < executed.sum() < 70 * tokens


def test_the_reference_equals_plain_python():
    (x, w1, b1, w2, b2), limits = arguments(5, 6, 4)
    expected, counts = b2.repeat(5, 1), [0] * 5
    for t, j in itertools.product(range(5), range(6)):
        gate, other = (float(w1[row] @ x[t] + b1[row]) for row in (j, 6 + j))
        h = gate / (1 + 2.718281828459045**-gate) * other
        if abs(h) > limits[j]:
            expected[t] += h * w2[j]
            counts[t] += 1
    y, executed = neuron_threshold_reference(x, w1, b1, w2, b2, limits, "product", "swiglu")
    torch.testing.assert_close(y, expected)
    assert executed.tolist() == counts


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("neurons", [1, 5, 64, 65, 130])
@pytest.mark.parametrize("score", SCORES)
def test_numbers_of_neurons_and_widths(backend, neurons, score):
    for width in (1, 7, 8, 15, 16, 17, 31, 33, 100, 576):
        values, limits = arguments(11, neurons, width, score=score)
        y, _ = neuron_threshold(*values, limits, score, backend, "swiglu")
        expected, _ = neuron_threshold_reference(*(v.double() for v in (*values, limits)), score, "swiglu")
        assert normalised_error(y, expected) < TOLERANCE


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", ALL)
@pytest.mark.parametrize("score", SCORES)
def test_a_limit_of_zero_equals_the_dense_layer(backend, activation, score):
    (x, w1, b1, w2, b2), limits = arguments(9, 40, activation=activation)
    dense = FORMULAS[activation](F.linear(x, w1, b1)) @ w2 + b2
    y, executed = neuron_threshold(x, w1, b1, w2, b2, 0 * limits, score, backend, activation)
    assert normalised_error(y, dense) < TOLERANCE
    if activation == "relu":
        assert torch.equal(executed, (F.linear(x, w1, b1) > 0).sum(-1)), "zeros do not run"


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_infinite_limit_runs_no_neuron(backend):
    (x, w1, b1, w2, b2), limits = arguments(9, 40)
    y, executed = neuron_threshold(x, w1, b1, w2, b2, limits + torch.inf, "gate", backend, "swiglu")
    assert torch.equal(y, b2.expand(9, -1)) and not executed.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_biases_and_without_tokens(backend):
    (x, w1, b1, w2, b2), limits = arguments(9, 40, activation="gelu")
    y, _ = neuron_threshold(x, w1, None, w2, None, limits, "product", backend, "gelu")
    expected, _ = neuron_threshold_reference(x, w1, 0 * b1, w2, 0 * b2, limits, "product", "gelu")
    assert normalised_error(y, expected) < TOLERANCE
    empty, executed = neuron_threshold(x[:0], w1, b1, w2, b2, limits, "product", backend, "gelu")
    assert empty.shape == (0, 37) and executed.shape == (0,)


@pytest.mark.parametrize("backend", [CPP])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("score", SCORES)
def test_a_token_gives_the_same_bits_in_every_batch(backend, threads, score):
    (x, *weights), limits = arguments(83, 150, 40, score=score)
    whole, counts = neuron_threshold(x, *weights, limits, score, backend, "swiglu")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for chosen in (slice(0, 1), slice(5, 9), slice(40, 83)):
            part, executed = neuron_threshold(x[chosen], *weights, limits, score, backend, "swiglu")
            assert torch.equal(part, whole[chosen]) and torch.equal(executed, counts[chosen])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("score", SCORES)
def test_a_token_of_nan_gives_nan_and_changes_no_other(backend, score):
    (x, *weights), limits = arguments(9, 40)
    expected, _ = neuron_threshold(x, *weights, limits, score, backend, "swiglu")
    x[4, 0] = float("nan")
    y, executed = neuron_threshold(x, *weights, limits, score, backend, "swiglu")
    assert y[4].isnan().all() and executed[4] == 40
    others = [0, 1, 2, 3, 5, 6, 7, 8]
    assert torch.equal(y[others], expected[others])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("activation", "score", "dense", "sparse"), [
    ("swiglu", "gate", 1, 2), ("swiglu", "product", 2, 1), ("gelu", "gate", 1, 1), ("gelu", "product", 1, 1),
])  # fmt: skip
def test_flops_are_those_of_executed_neurons(backend, activation, score, dense, sparse):
    values, limits = arguments(9, 12, activation=activation, score=score)
    with FlopCounterMode(display=False) as counter:
        _, executed = neuron_threshold(*values, limits, score, backend, activation)
    assert counter.get_total_flops() == 2 * 37 * (9 * 12 * dense + sparse * executed.sum().item())


def test_torch_compile_gives_the_same_bits():
    values, limits = arguments(9, 12)
    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(neuron_threshold, fullgraph=True, backend="aot_eager")
        y, executed = compiled(*values, limits, "gate", "auto", "swiglu")
    expected, counts = neuron_threshold(*values, limits, "gate", "auto", "swiglu")
    assert torch.equal(y, expected) and torch.equal(executed, counts)


def test_autocast_runs_in_its_precision():
    values, limits = arguments(9, 40)
    with torch.autocast("cpu", torch.bfloat16):
        y, _ = neuron_threshold(*values, limits, "product", "auto", "swiglu")
    expected, _ = neuron_threshold(*values, limits, "product", "auto", "swiglu")
    assert y.dtype == torch.bfloat16 and normalised_error(y, expected) < 0.05


def test_gradients_are_those_of_the_reference_or_an_error():
    values, limits = arguments(9, 12)
    values = [v.requires_grad_() for v in values]
    neuron_threshold(*values, limits, "product", "reference", "swiglu")[0].sum().backward()
    assert values[1].grad is not None
    with pytest.raises(RuntimeError, match="neuron_threshold is for inference"):
        neuron_threshold(*values, limits, "product", "auto", "swiglu")[0].sum().backward()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score": "up"}, "score is 'up'; allowed: gate, product"),
        ({"backend": "rows"}, "backend is 'rows'; allowed: auto, reference, masked_dense, fused, cpp"),
        ({"activation": "tanh"}, "activation is 'tanh'; allowed: relu"),
        ({"limits": torch.ones(5)}, r"limits is \[5\]; allowed: \[12\]"),
        ({"w1": torch.ones(12, 37)}, r"w1 is \[12, 37\]; allowed: \[24, 37\]"),
        ({"x": torch.ones(9, 36)}, r"x is \[9, 36\]; allowed: \[9, 37\]"),
    ],
)
def test_wrong_arguments_are_refused(changes, message):
    values, limits = arguments(9, 12)
    given = dict(zip(("x", "w1", "b1", "w2", "b2"), values, strict=True)) | {"limits": limits, "activation": "swiglu"}
    with pytest.raises(ValueError, match=message):
        neuron_threshold(**given | changes)


def test_the_kernel_is_for_single_precision():
    values, limits = arguments(9, 12)
    with pytest.raises(ValueError, match="backend cpp needs a CPU and float32"):
        neuron_threshold(*(v.double() for v in values), limits, "product", "cpp", "swiglu")
