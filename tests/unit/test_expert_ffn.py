"""expert_ffn: every backend on a CPU against the reference in double precision."""

from __future__ import annotations

import dataclasses
import itertools
from unittest import mock

import pytest
import torch
from expert_inputs import NEURONS, D, draw, inputs
from numerics import FORMULAS, normalised_error
from torch.utils.flop_counter import FlopCounterMode

from planer.kernels.activations import ACTIVATIONS, factors
from planer.kernels.cpp import build
from planer.kernels.expert_ffn import expert_ffn, expert_ffn_reference, unsupported
from planer.kernels.expert_ffn import products as experts
from planer.kernels.routing import Pairs, top_k

BACKENDS = [
    "loop",
    "grouped_mm",
    pytest.param("cpp", marks=pytest.mark.skipif("not available()", reason="needs a C++ compiler")),
]
TOLERANCE = 2e-6


def available():
    return build.available()


def results(function, values, logits, k, dtype, **options):
    """Output and gradients of the given inputs and of the logits."""
    leaves = [None if v is None else v.detach().to(dtype).requires_grad_() for v in (*values, logits)]
    *values, logits = leaves
    pairs, _ = top_k(logits, k)
    y = function(*values, pairs, **options)
    weight = draw(*y.shape, seed=9).to(dtype)
    return [y, *torch.autograd.grad((y * weight).sum(), [v for v in leaves if v is not None], materialize_grads=True)]


def worst(values, logits, k, backend, dtype=torch.float32, **options):
    """The largest error of output and gradients against the reference."""
    ours = results(expert_ffn, values, logits, k, dtype, backend=backend, **options)
    expected = results(expert_ffn_reference, values, logits, k, torch.float64, **options)
    return max(itertools.starmap(normalised_error, zip(ours, expected, strict=True)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_outputs_and_gradients_equal_the_reference(backend, k, bias, activation):
    values = inputs(37, 4, bias=bias, activation=activation)
    assert worst(values, draw(37, 4), k, backend, activation=activation) < TOLERANCE


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_wide_rows(backend, activation):
    values = inputs(3, 2, 8_192, 8, activation=activation)
    bound = 2 * factors(activation) * TOLERANCE  # a gated activation multiplies two rounded sums
    assert worst(values, draw(3, 2), 1, backend, activation=activation) < bound


def test_triton_is_left_out_where_an_expert_is_too_large_for_it():
    kind = "triton", torch.device("cuda"), torch.bfloat16
    assert "at most 2,147,483,647 weights" in unsupported(*kind, 8_192, 131_072, "swiglu")
    assert "at most 2,147,483,647" not in str(unsupported(*kind, 8_192, 131_072, "silu"))


def test_grouped_products_need_aligned_rows_after_the_activation():
    kind = "grouped_mm", torch.device("cpu"), torch.float32
    assert "16 bytes" in unsupported(*kind, 8, 6, "swiglu") and unsupported(*kind, 8, 8, "swiglu") is None


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tokens", [1, 2, 300])
def test_numbers_of_tokens(backend, tokens):
    assert worst(inputs(tokens, 4), draw(tokens, 4), 2, backend) < TOLERANCE


@pytest.mark.parametrize("backend", ["loop", BACKENDS[2]])
@pytest.mark.parametrize(("width", "neurons"), [(1, 1), (5, 3), (37, 97)])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_odd_sizes_in_both_precisions(backend, width, neurons, activation):
    values, logits = inputs(19, 3, width, neurons, activation=activation), draw(19, 3)
    assert worst(values, logits, 2, backend, activation=activation) < TOLERANCE
    assert worst(values, logits, 2, backend, torch.float64, activation=activation) < 1e-13


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("k", [1, 2])
def test_experts_without_tokens(backend, k):
    logits = torch.full((9, 4), -5.0, dtype=torch.float64)
    logits[:, 2], logits[:, 3] = 5.0, 4.0
    values = inputs(9, 4)
    assert worst(values, logits, k, backend) < TOLERANCE
    _, _, *weights, _ = results(expert_ffn, values, logits, k, torch.float32, backend=backend)
    for gradient in weights:
        assert gradient[2].abs().sum() > 0
        assert gradient[[0, 1]].abs().sum() == 0


@pytest.mark.parametrize("backend", [BACKENDS[2]])
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("routing", ["even", "skewed", "one"])
@pytest.mark.parametrize("k", [1, 2])
def test_threads_and_routings(backend, threads, routing, k):
    """A thread gets whole experts or parts of them, or all threads share one product."""
    logits = draw(600, 4)
    if routing != "even":
        chosen = slice(600 if routing == "one" else 450)
        logits[chosen, 2] = logits[chosen].amax(1) + 0.1
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert worst(inputs(600, 4), logits, k, backend) < TOLERANCE
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_tokens(backend):
    y, *gradients = results(expert_ffn, inputs(0, 3), torch.zeros(0, 3), 2, torch.float32, backend=backend)
    assert y.shape == (0, D)
    assert all(not gradient.any() for gradient in gradients)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("gated", [True, False])
def test_tokens_with_different_numbers_of_experts(backend, gated):
    values = [v.requires_grad_() for v in inputs(4, 3)]
    token, expert = torch.tensor([0, 0, 0, 2, 3, 3]), torch.tensor([2, 0, 1, 1, 2, 0])
    gate = draw(6).requires_grad_() if gated else None
    wanted = [*values, gate] if gated else values
    both = []
    for function, dtype, options in (
        (expert_ffn, torch.float32, {"backend": backend}),
        (expert_ffn_reference, torch.float64, {}),
    ):
        pairs = Pairs(token, expert, gate, 4, 3)
        y = function(*(v.to(dtype) for v in values), pairs, **options)
        assert not y[1].any(), "a token without experts has the output 0"
        both.append((y, *torch.autograd.grad(y.square().sum(), wanted)))
    for ours, expected in zip(*both, strict=True):
        assert normalised_error(ours, expected) < TOLERANCE


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_dropout_equals_a_dense_layer_with_the_same_mask(backend, activation, monkeypatch):
    x, w1, b1, w2, b2 = (v.requires_grad_() for v in inputs(30, 1, activation=activation))
    mask = (draw(30, NEURONS) > 0) / 0.5
    expected = (FORMULAS[activation](x @ w1[0].T + b1[0]) * mask) @ w2[0].T + b2[0]
    monkeypatch.setattr("planer.kernels.expert_ffn.function.F.dropout", lambda ones, p: mask.to(ones.dtype) * ones)
    pairs = Pairs(torch.arange(30), torch.zeros(30, dtype=torch.int64), torch.ones(30), 30, 1, 1)
    leaves = [v.float().detach().requires_grad_() for v in (x, w1, b1, w2, b2)]
    y = expert_ffn(*leaves, pairs, 0.5, True, activation, backend)
    assert normalised_error(y, expected) < TOLERANCE
    ours = torch.autograd.grad(y.square().sum(), leaves)
    for gradient, wanted in zip(ours, torch.autograd.grad(expected.square().sum(), (x, w1, b1, w2, b2)), strict=True):
        assert normalised_error(gradient, wanted) < TOLERANCE


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_acts_in_training_only(backend):
    values = [v.float() for v in inputs(200, 2)]
    pairs, _ = top_k(draw(200, 2).float(), 1)
    plain = expert_ffn(*values, pairs, backend=backend)
    assert torch.equal(expert_ffn(*values, pairs, 0.5, training=False, backend=backend), plain)
    assert not torch.allclose(expert_ffn(*values, pairs, 0.5, training=True, backend=backend), plain)
    only_bias = expert_ffn(*values, pairs, 1.0, training=True, backend=backend)
    torch.testing.assert_close(only_bias, pairs.gate[:, None] * values[4][pairs.expert])


@pytest.mark.parametrize("backend", BACKENDS)
def test_permuting_tokens_permutes_outputs(backend):
    x, *w = (v.float() for v in inputs(61, 4))
    logits = draw(61, 4)
    permutation = torch.randperm(61, generator=torch.Generator().manual_seed(2))
    y = expert_ffn(x, *w, top_k(logits, 2)[0], backend=backend)
    shuffled = expert_ffn(x[permutation], *w, top_k(logits[permutation], 2)[0], backend=backend)
    assert normalised_error(shuffled, y[permutation]) < TOLERANCE


@pytest.mark.parametrize("backend", BACKENDS)
def test_reordered_experts_give_equal_outputs(backend):
    x, *w = (v.float() for v in inputs(61, 4))
    logits, names = draw(61, 4), torch.tensor([2, 0, 3, 1])
    y = expert_ffn(x, *w, top_k(logits, 2)[0], backend=backend)
    renamed = expert_ffn(x, *(v[names] for v in w), top_k(logits[:, names], 2)[0], backend=backend)
    assert normalised_error(renamed, y) < TOLERANCE


@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_experts_equal_a_dense_layer(backend):
    x, *w = (v.float() for v in inputs(50, 1))
    same = [v.expand(4, *v.shape[1:]) for v in w]
    dense = torch.relu(x @ w[0][0].T + w[1][0]) @ w[2][0].T + w[3][0]
    for k in (1, 2, 4):
        pairs, _ = top_k(draw(50, 4), k)
        gated = expert_ffn(x, *same, pairs, backend=backend)
        scale = pairs.gate.view(50, k).sum(1, keepdim=True).float()
        assert normalised_error(gated, dense * scale) < TOLERANCE


@pytest.mark.parametrize("backend", BACKENDS)
def test_all_experts_with_equal_gates_give_their_mean(backend):
    x, w1, b1, w2, b2 = (v.float() for v in inputs(33, 4))
    pairs, _ = top_k(torch.zeros(33, 4), 4)
    hidden = torch.relu(torch.einsum("nd,eid->eni", x, w1) + b1[:, None])
    mean = (torch.einsum("eni,edi->end", hidden, w2) + b2[:, None]).mean(0)
    assert normalised_error(expert_ffn(x, w1, b1, w2, b2, pairs, backend=backend), mean) < TOLERANCE


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("k", [1, 2])
def test_two_runs_give_the_same_bits_with_nan_in_new_memory(backend, k):
    """One expert has no tokens: its gradients must be written."""
    logits = draw(65, 5)
    logits[:, 3] = -9
    arguments = inputs(65, 5), logits, k, torch.float32
    first = results(expert_ffn, *arguments, backend=backend)
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    try:
        assert torch.utils.deterministic.fill_uninitialized_memory and torch.empty(3).isnan().all()
        second = results(expert_ffn, *arguments, backend=backend)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("fault", ["row", "expert"])
def test_a_dropped_row_or_expert_is_found(fault):
    multiply = experts.Loop.times_transposed

    def faulty(self, a, w, bias):
        out = multiply(self, a, w, bias)
        out[self._rows[1] if fault == "expert" else slice(3, 4)] = 0
        return out

    with mock.patch.object(experts.Loop, "times_transposed", faulty):
        assert worst(inputs(37, 4), draw(37, 4), 1, "loop") > 1000 * TOLERANCE


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (3,), (4,), (5,), (0, 3), (1, 5)])
def test_gradients_only_where_required(backend, wanted):
    values, logits = inputs(23, 3), draw(23, 3)
    every = results(expert_ffn, values, logits, 2, torch.float32, backend=backend)
    leaves = [v.float() for v in (*values, logits)]
    for index in wanted:
        leaves[index].requires_grad_()
    y = expert_ffn(*leaves[:5], top_k(leaves[5], 2)[0], backend=backend)
    weight = draw(*y.shape, seed=9).float()
    (y * weight).sum().backward()
    for index, leaf in enumerate(leaves):
        if index in wanted:
            torch.testing.assert_close(leaf.grad, every[1 + index], rtol=1e-5, atol=1e-6)
        else:
            assert leaf.grad is None


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", sorted(set(ACTIVATIONS) - {"relu"}))
def test_autocast_in_bfloat16(backend, activation):
    """The error is at most 1.5 times that of PyTorch's products in bfloat16."""
    values, logits = inputs(64, 4, 32, 64, activation=activation), draw(64, 4)
    exact = results(expert_ffn_reference, values, logits, 2, torch.float64, activation=activation)

    def error(**options):
        with torch.autocast("cpu", torch.bfloat16):
            ours = results(expert_ffn, values, logits, 2, torch.float32, activation=activation, **options)
        assert ours[0].dtype == torch.bfloat16 and all(gradient.dtype == torch.float32 for gradient in ours[1:])
        return max(itertools.starmap(normalised_error, zip(ours, exact, strict=True)))

    assert error(backend=backend) < 1.5 * error(backend="loop") + 1e-3


@pytest.mark.parametrize("backend", ["loop", BACKENDS[2]])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_values_far_from_zero(backend, activation):
    """One neuron of weight 1 gives the activation itself: near zero, far from it, and of NaN."""
    z = torch.cat((torch.linspace(-120, 120, 999), torch.linspace(-6, 6, 1001), torch.tensor([float("nan")])))[:, None]
    z = z.double().requires_grad_()
    one = torch.ones(1, factors(activation), 1), None, torch.ones(1, 1, 1), None
    pairs = Pairs(torch.arange(len(z)), torch.zeros(len(z), dtype=torch.int64), None, len(z), 1, 1)
    x = z.detach().float().requires_grad_()
    y = expert_ffn(x, *one, pairs, activation=activation, backend=backend)
    expected = FORMULAS[activation](z.expand(-1, factors(activation)))
    gradients = [torch.autograd.grad(out.sum(), leaf)[0] for out, leaf in ((y, x), (expected, z))]
    torch.testing.assert_close(y.double(), expected, rtol=1e-6, atol=1e-6, equal_nan=True)
    torch.testing.assert_close(gradients[0].double()[:-1], gradients[1][:-1], rtol=1e-6, atol=2e-6)


def operator_arguments(backend, k=2, save=True):
    captured = []
    operator = torch.ops.planer.expert_ffn
    with mock.patch("torch.ops.planer.expert_ffn", lambda *a: captured.append(a) or operator(*a)):
        leaves = [v.float().requires_grad_() for v in inputs(16, 3)]
        expert_ffn(*leaves, top_k(draw(16, 3).float(), k)[0], 0.5, save, backend=backend)
    return captured[0]


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_the_operators_are_well_formed(backend):
    arguments = operator_arguments(backend)
    torch.library.opcheck(torch.ops.planer.expert_ffn.default, arguments)
    y, hidden = torch.ops.planer.expert_ffn(*arguments)
    *layer, _ = (a.detach() if torch.is_tensor(a) else a for a in arguments)
    for needs in ([True] * 6, [False, True] * 3):
        sample = torch.ones_like(y), hidden.detach(), *layer, needs
        torch.library.opcheck(torch.ops.planer.expert_ffn_backward.default, sample)


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_compiles_as_one_graph(backend):
    values, logits = inputs(16, 3), draw(16, 3)
    torch._dynamo.reset()

    def layer(*arguments, **options):
        return torch.compile(expert_ffn, fullgraph=True, backend="aot_eager")(*arguments, **options)

    compiled = results(layer, values, logits, 2, torch.float32, backend=backend)
    eager = results(expert_ffn, values, logits, 2, torch.float32, backend=backend)
    assert all(map(torch.equal, compiled, eager))


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@pytest.mark.parametrize("k", [1, 2])
def test_flops_of_forward_and_backward(backend, k):
    values, logits = inputs(24, 3), draw(24, 3)
    with FlopCounterMode(display=False) as counter:
        results(expert_ffn, values, logits, k, torch.float32, backend=backend)
    assert counter.get_total_flops() == 3 * 4 * 24 * k * D * NEURONS
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        expert_ffn(*(v.float() for v in values), top_k(logits, k)[0], backend=backend)
    assert counter.get_total_flops() == 4 * 24 * k * D * NEURONS


def test_flops_of_grouped_products():
    """They equal those of plain products."""
    rows, weights, ends = torch.randn(24, 8), torch.randn(3, 8, 16), torch.tensor([4, 10, 24], dtype=torch.int32)
    with FlopCounterMode(display=False) as counter:
        out = experts.grouped_mm(rows, weights, offs=ends)
        experts.grouped_mm(rows.t(), out, offs=ends)
        experts.grouped_mm(weights.transpose(1, 2), rows.t(), offs=ends)
        experts.grouped_mm(weights.transpose(1, 2), weights)
    assert counter.get_total_flops() == 3 * 2 * 24 * 8 * 16 + 2 * 3 * 16 * 8 * 16


@pytest.mark.parametrize("backend", ["auto", "reference", "triton", *BACKENDS])
@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("x", (8, D), r"x is \[8, 12\]; allowed: \[9, 12\]"),
        ("x", (9, D + 1), r"x is \[9, 13\]; allowed: \[9, 12\]"),
        ("w1", (4, NEURONS, D), r"w1 is \[4, 20, 12\]; allowed: \[3, 20, 12\]"),
        ("b1", (3, NEURONS + 1), r"b1 is \[3, 21\]; allowed: \[3, 20\]"),
        ("w2", (3, NEURONS, D), r"w2 is \[3, 20, 12\]; allowed: \[3, 12, 20\]"),
        ("b2", (3, D + 1), r"b2 is \[3, 13\]; allowed: \[3, 12\]"),
        ("gate", (17,), r"gate is \[17\]; allowed: \[18\]"),
        ("expert", (17,), r"expert is \[17\]; allowed: \[18\]"),
        ("token", (17,), r"token is \[17\]; allowed: \[18\]"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(backend, name, shape, message):
    values = dict(zip(("x", "w1", "b1", "w2", "b2"), inputs(9, 3), strict=True))
    pairs, _ = top_k(draw(9, 3), 2)
    if name in values:
        values[name] = torch.ones(shape, dtype=torch.float64)
    else:
        pairs = dataclasses.replace(pairs, **{name: torch.zeros(shape, dtype=getattr(pairs, name).dtype)})
    with pytest.raises(ValueError, match=message):
        expert_ffn(**values, pairs=pairs, backend=backend)


def test_unsupported_backends_and_activations_are_refused():
    values, pairs = inputs(4, 2, 3, 5), top_k(draw(4, 2), 1)[0]
    with pytest.raises(ValueError, match="backend grouped_mm needs float32.*16 bytes"):
        expert_ffn(*(v.float() for v in values), pairs, backend="grouped_mm")
    with pytest.raises(ValueError, match="backend triton needs a CUDA device"):
        expert_ffn(*values, pairs, backend="triton")
    with pytest.raises(ValueError, match="backend is 'fast'; allowed: auto, reference"):
        expert_ffn(*values, pairs, backend="fast")
    with pytest.raises(ValueError, match="activation is 'tanh'; allowed: relu, gelu"):
        expert_ffn(*values, pairs, activation="tanh")
