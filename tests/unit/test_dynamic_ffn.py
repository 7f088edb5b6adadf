"""dynamic_ffn: every backend on a CPU against the reference in double precision."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from numerics import normalised_error
from torch.utils.flop_counter import FlopCounterMode

from planer.kernels.activations import ALL, activate, factors
from planer.kernels.cpp import build
from planer.kernels.dynamic_ffn import backends as dynamic
from planer.kernels.dynamic_ffn import dynamic_ffn, dynamic_ffn_reference
from planer.kernels.dynamic_ffn import function as module

CPP = pytest.param("cpp", marks=pytest.mark.skipif("not available()", reason="needs a C++ compiler"))
BACKENDS = ["masked_dense", "loop", "rows", CPP]
TOLERANCE = 1e-6


def available():
    return build.available()


def arguments(tokens, neurons, width=37, dtype=torch.float32, activation="relu"):
    """x, w1, b1, w2, b2, scaled so that outputs are about 1."""
    generator = torch.Generator().manual_seed(tokens + neurons)
    rows = factors(activation) * neurons
    shapes = (tokens, width), (rows, width), (rows,), (neurons, width), (width,)
    x, w1, b1, w2, b2 = (torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes)
    return [v.to(dtype) for v in (x, w1 / width**0.5, b1, w2 / neurons**0.5, b2)]


def masks(tokens, experts):
    """Three masks; in the first, one expert has no tokens and one token no experts."""
    generator = torch.Generator().manual_seed(tokens * experts)
    some = torch.rand(tokens, experts, generator=generator) < 0.4
    some[:, 0] = False
    some[tokens // 2] = False
    return {"some": some, "all": torch.ones_like(some), "none": torch.zeros_like(some)}


def error(values, mask, backend, activation="relu"):
    expected = dynamic_ffn_reference(*(v.double() for v in values), mask, activation)
    return normalised_error(dynamic_ffn(*values, mask, backend, activation), expected)


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@pytest.mark.parametrize("kind", ["some", "all", "none"])
def test_outputs_equal_the_reference(backend, kind):
    for tokens, size, experts in ((13, 3, 4), (1, 4, 3), (31, 1, 8), (4, 6, 1), (9, 128, 2)):
        found = error(arguments(tokens, size * experts), masks(tokens, experts)[kind], backend)
        assert found < TOLERANCE, (tokens, size, experts)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", ALL)
def test_expert_sizes(backend, activation):
    for size in (1, 2, 5, 6, 16, 100, 128, 300):
        values = arguments(21, 3 * size, activation=activation)
        bound = factors(activation) * TOLERANCE  # a gated activation multiplies two rounded sums
        assert error(values, masks(21, 3)["some"], backend, activation) < bound, size


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", ALL)
def test_wide_rows(backend, activation):
    values = arguments(5, 12, 8_192, activation=activation)
    assert error(values, masks(5, 3)["some"], backend, activation) < TOLERANCE


@pytest.mark.parametrize("backend", BACKENDS)
def test_widths(backend):
    """Around the widths of vector registers."""
    for width in (1, 7, 8, 15, 16, 24, 31, 32, 48, 100, 128):
        assert error(arguments(11, 20, width), masks(11, 4)["some"], backend) < TOLERANCE, width


@pytest.mark.parametrize("backend", BACKENDS)
def test_many_tokens(backend):
    """More than one block of them."""
    assert error(arguments(1100, 24, 8), masks(1100, 6)["some"], backend) < TOLERANCE


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_no_tokens(backend):
    assert dynamic_ffn(*arguments(0, 12), torch.ones(0, 4, dtype=torch.bool), backend).shape == (0, 37)


@pytest.mark.parametrize("backend", ["masked_dense", "loop", "rows"])
def test_double_precision(backend):
    values, mask = arguments(13, 12, dtype=torch.float64), masks(13, 4)["some"]
    assert normalised_error(dynamic_ffn(*values, mask, backend), dynamic_ffn_reference(*values, mask)) < 1e-14


@pytest.mark.parametrize("backend", BACKENDS)
def test_all_experts_together_equal_the_dense_layer(backend):
    x, w1, b1, w2, b2 = arguments(7, 12)
    dense = torch.relu(x @ w1.T + b1) @ w2 + b2
    assert normalised_error(dynamic_ffn(x, w1, b1, w2, b2, masks(7, 4)["all"], backend), dense) < TOLERANCE


@pytest.mark.parametrize("backend", BACKENDS)
def test_reordered_experts_give_equal_outputs(backend):
    x, w1, b1, w2, b2 = arguments(30, 12)
    mask, names = masks(30, 4)["some"], torch.tensor([2, 0, 3, 1])
    moved = (v.unflatten(0, (4, 3))[names].flatten(0, 1) for v in (w1, b1, w2))
    w3, b3, w4 = moved
    y = dynamic_ffn(x, w1, b1, w2, b2, mask, backend)
    assert normalised_error(dynamic_ffn(x, w3, b3, w4, b2, mask[:, names], backend), y) < TOLERANCE


@pytest.mark.parametrize("backend", BACKENDS)
def test_permuting_tokens_permutes_outputs(backend):
    x, *weights = arguments(61, 12)
    mask, permutation = masks(61, 4)["some"], torch.randperm(61, generator=torch.Generator().manual_seed(2))
    y = dynamic_ffn(x, *weights, mask, backend)
    assert (
        normalised_error(dynamic_ffn(x[permutation], *weights, mask[permutation], backend), y[permutation]) < TOLERANCE
    )


@pytest.mark.parametrize("backend", [CPP])
@pytest.mark.parametrize("activation", ALL)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_token_gives_the_same_bits_in_every_batch(backend, threads, activation):
    x, *weights = arguments(83, 30, 40, activation=activation)
    mask = masks(83, 5)["some"]
    whole = dynamic_ffn(x, *weights, mask, backend, activation)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for chosen in (slice(0, 1), slice(5, 9), slice(40, 83)):
            part = dynamic_ffn(x[chosen], *weights, mask[chosen], backend, activation)
            assert torch.equal(part, whole[chosen])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_runs_give_the_same_bits_with_nan_in_new_memory(backend):
    values, mask = arguments(65, 24), masks(65, 4)["some"]
    first = dynamic_ffn(*values, mask, backend)
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    try:
        assert torch.empty(3).isnan().all()
        second = dynamic_ffn(*values, mask, backend)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(first, second)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_token_of_nan_gives_nan(backend):
    x, *weights = arguments(9, 12)
    x[4, 0] = float("nan")
    mask = masks(9, 4)["all"]
    broken = dynamic_ffn(x, *weights, mask, backend).isnan().any(1)
    assert broken.tolist() == [row == 4 for row in range(9)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_neurons_that_are_not_executed_do_not_change_outputs(backend, value):
    x, w1, b1, w2, b2 = arguments(9, 12)
    mask = masks(9, 4)["some"]  # no token executes the first expert
    expected = dynamic_ffn(x, w1, b1, w2, b2, mask, backend)
    b1[0] = value
    assert torch.equal(dynamic_ffn(x, w1, b1, w2, b2, mask, backend), expected)


@pytest.mark.parametrize("backend", ["auto", "reference", "triton", *BACKENDS])
@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("mask", (9, 5), "5 experts do not divide 12 neurons"),
        ("mask", (9, 0), "0 experts do not divide 12 neurons"),
        ("x", (8, 37), r"x is \[8, 37\]; allowed: \[9, 37\]"),
        ("x", (9, 36), r"x is \[9, 36\]; allowed: \[9, 37\]"),
        ("b1", (13,), r"b1 is \[13\]; allowed: \[12\]"),
        ("w2", (37, 12), r"w2 is \[37, 12\]; allowed: \[12, 37\]"),
        ("b2", (1,), r"b2 is \[1\]; allowed: \[37\]"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(backend, name, shape, message):
    values = dict(zip(("x", "w1", "b1", "w2", "b2"), arguments(9, 12), strict=True)) | {"mask": masks(9, 4)["all"]}
    values[name] = torch.ones(shape, dtype=values[name].dtype)
    with pytest.raises(ValueError, match=message):
        dynamic_ffn(**values, backend=backend)


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_a_mask_of_numbers_is_refused(backend):
    with pytest.raises(ValueError, match=r"mask is torch.int64; allowed: torch.bool"):
        dynamic_ffn(*arguments(9, 12), masks(9, 4)["all"].long(), backend)


def test_triton_is_left_out_where_rows_are_too_wide_for_it():
    kind = "triton", torch.device("cuda"), torch.float32
    assert "at most 8,192, which is 8,193" in module.unsupported(*kind, 8_193, 16)
    assert "at most 131,072 neurons, which are 131,073" in module.unsupported(*kind, 16, 131_073)


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_arguments_do_not_change(backend):
    values = arguments(1, 12)
    copies = [value.clone() for value in values]
    dynamic_ffn(*values, masks(1, 3)["all"], backend)
    assert all(map(torch.equal, values, copies))


@pytest.mark.parametrize("fault", ["token", "expert"])
def test_a_dropped_token_or_expert_is_found(fault, monkeypatch):

    def faulty(*values):
        *values, mask, activation = values
        mask = mask.clone()
        mask[(7,) if fault == "token" else (slice(None), 2)] = False
        return masked_dense(*values, mask, activation)

    masked_dense = dynamic.masked_dense
    monkeypatch.setattr(dynamic, "masked_dense", faulty)
    assert error(arguments(13, 12), masks(13, 4)["some"], "masked_dense") > 1000 * TOLERANCE


@pytest.mark.parametrize("backend", ["auto", "masked_dense", "loop", "rows"])
def test_under_autocast(backend):
    values, mask = arguments(9, 12), masks(9, 4)["some"]
    with torch.autocast("cpu", torch.bfloat16):
        y = dynamic_ffn(*values, mask, backend)
    assert y.dtype == torch.bfloat16
    assert normalised_error(y, dynamic_ffn_reference(*(v.double() for v in values), mask)) < 0.02


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_the_operator_is_well_formed(backend):
    values = *arguments(9, 12), masks(9, 4)["some"], backend, "relu"
    torch.library.opcheck(torch.ops.planer.dynamic_ffn.default, values)


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_compiles_as_one_graph(backend):
    values, mask = arguments(9, 12), masks(9, 4)["some"]
    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(dynamic_ffn, fullgraph=True, backend="aot_eager")(*values, mask, backend)
    assert torch.equal(compiled, dynamic_ffn(*values, mask, backend))


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_flops_are_those_of_chosen_neurons(backend):
    values, mask = arguments(9, 12), masks(9, 4)["some"]
    with FlopCounterMode(display=False) as counter:
        dynamic_ffn(*values, mask, backend)
    assert counter.get_total_flops() == 4 * 37 * 3 * mask.sum().item()


def test_the_loop_computes_only_chosen_neurons():
    values, mask = arguments(9, 12), masks(9, 4)["some"]
    with FlopCounterMode(display=False) as counter:
        dynamic.loop(*values, mask, "relu")
    assert counter.get_total_flops() == 4 * 37 * 3 * mask.sum().item()


@pytest.mark.parametrize("backend", ["masked_dense", "loop", "rows"])
@pytest.mark.parametrize(
    ("activation", "bias"), [("gelu", True), ("gelu_tanh", False), ("silu", True), ("swiglu", True)]
)
def test_activations_with_and_without_biases(backend, activation, bias):
    x, w1, b1, w2, b2 = arguments(9, 12, dtype=torch.float64, activation=activation)
    values, mask = (x, w1, b1 if bias else None, w2, b2 if bias else None), masks(9, 4)["some"]
    neurons = mask.repeat_interleave(3, dim=1)
    expected = (activate(F.linear(*values[:3]), activation) * neurons) @ w2 + (b2 if bias else 0)
    for name in (backend, "reference"):
        torch.testing.assert_close(dynamic_ffn(*values, mask, name, activation), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@pytest.mark.parametrize("activation", ["relu", "swiglu"])
def test_without_biases(backend, activation):
    x, w1, b1, w2, b2 = arguments(9, 12, activation=activation)
    mask = masks(9, 4)["some"]
    expected = dynamic_ffn_reference(x, w1, 0 * b1, w2, 0 * b2, mask, activation)
    assert normalised_error(dynamic_ffn(x, w1, None, w2, None, mask, backend, activation), expected) < TOLERANCE


def test_gradients_are_those_of_the_reference_or_an_error():
    values, mask = [v.requires_grad_() for v in arguments(9, 12)], masks(9, 4)["some"]
    dynamic_ffn(*values, mask, "reference").sum().backward()
    assert values[1].grad is not None
    with pytest.raises(RuntimeError, match="dynamic_ffn is for inference"):
        dynamic_ffn(*values, mask).sum().backward()


def test_unsupported_backends_are_refused():
    values, mask = arguments(9, 12, dtype=torch.float64), masks(9, 4)["some"]
    with pytest.raises(ValueError, match="backend cpp needs a CPU and float32"):
        dynamic_ffn(*values, mask, "cpp")
    with pytest.raises(ValueError, match="backend triton needs a CUDA device"):
        dynamic_ffn(*values, mask, "triton")
    with pytest.raises(ValueError, match="backend is 'gathered'; allowed: auto, reference"):
        dynamic_ffn(*values, mask, "gathered")


def test_without_a_compiler_auto_takes_pytorch(monkeypatch):
    values, mask = arguments(9, 12), masks(9, 4)["some"]
    monkeypatch.setattr(build, "available", lambda: False)
    assert module._best(values[0], values[1], mask) in ("masked_dense", "loop", "rows")
    assert error(values, mask, "auto") < TOLERANCE
    with pytest.raises(ValueError, match="backend cpp needs a C.. compiler"):
        dynamic_ffn(*values, mask, "cpp")
