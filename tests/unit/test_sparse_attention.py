"""Attention with multiplicative projections, with and without convolutions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from test_attention import D_MODEL, attend, read
from test_parent_start import assert_same_sublayers, logits, parent_of, started
from toy import experiment

from planer.blocks.multiplicative import Multiplicative
from planer.config import WorkloadConfig
from planer.errors import UserError
from planer.evaluation.flops import checked_flops
from planer.kernels.multiplicative import multiplicative
from planer.latency.networks import timed_forward
from planer.models import LanguageModel, initialise
from planer.runtime import Runtime
from planer.search.supernet import Supernet
from planer.specs import Architecture, Attention, FeedForward
from planer.specs.sparse_attention import SparseAttention
from planer.specs.sparse_conv_attention import SparseConvAttention

PLAIN, CONVOLVED = SparseAttention(3, 4, 6), SparseConvAttention(3, 4, 3)
BOTH = pytest.mark.parametrize("spec", [PLAIN, CONVOLVED], ids=lambda spec: spec.kind)
NORMS = pytest.mark.parametrize("norm", ["post", "pre"])


def network(*blocks, norm: str = "post") -> LanguageModel:
    """A network of random weights and biases in double precision."""
    model = LanguageModel(Architecture(11, D_MODEL, blocks, norm, dropout=0.0))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4, generator=generator)
    return model.double().eval()


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def by_hand(layer: Multiplicative, x: torch.Tensor) -> torch.Tensor:
    """Outputs of the layer by the formula."""
    y = torch.einsum("...i,si,im->...sm", x, layer.scales, layer.shared).flatten(-2)
    return y if layer.bias is None else y + layer.bias


def convolved(layer: torch.nn.Conv2d, y: torch.Tensor) -> torch.Tensor:
    """The convolution as a loop over positions and modules: y [B, L, W] to [B, L, W]."""
    image = y.unflatten(-1, (-1, layer.in_channels))
    _, length, modules, _ = image.shape
    result = layer.bias.expand(image.shape).clone()
    for t, s in torch.cartesian_prod(torch.arange(length), torch.arange(modules)).tolist():
        for i, j in torch.cartesian_prod(*map(torch.arange, layer.kernel_size)).tolist():
            time, other = t - 2 + i, s + j - layer.kernel_size[1] // 2
            if time >= 0 and 0 <= other < modules:
                result[:, t, s] += image[:, time, other] @ layer.weight[:, :, i, j].T
    return result.flatten(2)


def reference(block, seen: torch.Tensor, length: int, mem_len: int, same_length: bool) -> torch.Tensor:
    """The block's output for the last ``length`` positions of a text [B, L, D] with a memory of mem_len."""
    a, source = block.sublayer, block.norm(seen) if block.pre_norm else seen
    if isinstance(a.output, Multiplicative):
        q, k, v = (by_hand(layer, source) for layer in (a.queries, a.keys, a.values))
    else:
        q, k, v = (convolved(layer, by_hand(a.projection, source)) for layer in (a.queries, a.keys, a.values))
    q, k, v = (part.unflatten(-1, (a.num_heads, a.d_head)) for part in (q, k, v))
    window = length + mem_len
    mixed = attend(a, q[:, -length:], k[:, -window:], v[:, -window:], mem_len, same_length, 0)
    y = seen[:, -length:] + (by_hand(a.output, mixed) if isinstance(a.output, Multiplicative) else mixed)
    return y if block.pre_norm else block.norm(y)


class TestMultiplicative:
    @pytest.mark.parametrize("rows", [1, 4, 5, 30])
    def test_few_and_many_rows_equal_the_formula(self, rows):
        x, scales, shared, bias = normal(rows, 8), normal(3, 8), normal(8, 4), normal(12)
        expected = torch.stack([
            sum(x[:, i] * scales[s, i] * shared[i, m] for i in range(8)) + bias[4 * s + m]
            for s in range(3) for m in range(4)
        ], dim=-1)  # fmt: skip
        torch.testing.assert_close(multiplicative(x, scales, shared, bias), expected)

    @pytest.mark.parametrize("rows", [2, 9])
    def test_gradients(self, rows):
        tensors = [normal(*shape).requires_grad_() for shape in ((rows, 6), (3, 6), (6, 4), (12,))]
        assert torch.autograd.gradcheck(multiplicative, tensors)

    @pytest.mark.parametrize("modules", [1, 2, 4, 16])
    def test_any_permutation_can_be_expressed(self, modules):
        order, width = torch.randperm(16, generator=torch.Generator().manual_seed(modules)), 16 // modules
        scales, shared = torch.zeros(modules, 16), torch.zeros(16, width)
        for output, source in enumerate(order.tolist()):
            scales[output // width, source] = 1
            shared[source, output % width] = 1
        for rows in (1, 40):
            x = normal(rows, 16).float()
            assert torch.equal(multiplicative(x, scales, shared), x[:, order])

    def test_initialisation_equals_trax(self):
        """Outputs of unit inputs have the variance 0.25 * 2 d / (d + M)."""
        model = LanguageModel(Architecture(11, 256, (SparseAttention(4, 64, 16), SparseConvAttention(4, 64, 16))))
        initialise(model, torch.Generator().manual_seed(0))
        plain, convolved = (block.sublayer for block in model.blocks)
        for layer in (plain.queries, plain.positions, plain.output, convolved.projection):
            assert layer.scales.std().item() == pytest.approx(0.5, rel=0.05)
            bound = math.sqrt(6 / (256 + 16))
            assert 0.98 * bound < layer.shared.abs().max() <= bound
            assert layer.bias is None or not layer.bias.any()
            assert layer(normal(500, 256).float()).var().item() == pytest.approx(0.25 * 512 / 272, rel=0.1)
        for layer in (convolved.queries, convolved.keys, convolved.values):
            assert layer.weight.std().item() == pytest.approx(1 / 4, rel=0.05) and not layer.bias.any()

    def test_modules_that_do_not_divide_the_outputs_are_refused(self):
        with pytest.raises(ValueError, match="5 modules do not divide 12 outputs"):
            Multiplicative(8, 12, 5)


@BOTH
@NORMS
@pytest.mark.parametrize(("length", "memory_len"), [(5, 0), (5, 3), (1, 4)])
def test_outputs_and_gradients_equal_the_reference(spec, norm, length, memory_len):
    """For a segment after a text whose end is the memory."""
    model, text = network(spec, norm=norm), normal(2, memory_len + 4 + length, D_MODEL).requires_grad_()
    memory = text[:, : memory_len + 4][:, -memory_len - model.blocks[0].lookback :] if memory_len else None
    seen = text if memory_len else text[:, -length:]
    weights = tuple(model.blocks.parameters())
    for same_length in (False, True):
        ours = model.run_blocks(text[:, -length:], [memory], mem_len=memory_len, same_length=same_length)[0]
        expected = reference(model.blocks[0], seen, length, memory_len, same_length)
        torch.testing.assert_close(ours, expected)
        direction = normal(*ours.shape, seed=1)
        gradients = [torch.autograd.grad((y * direction).sum(), (text, *weights), allow_unused=True)
                     for y in (ours, expected)]  # fmt: skip
        for mine, theirs in zip(*gradients, strict=True):
            torch.testing.assert_close(mine, theirs)


@NORMS
@pytest.mark.parametrize(
    ("mem_len", "lengths"), [(12, [5, 5, 5, 5, 2]), (4, [6, 1, 1, 6, 3]), (0, [4, 1, 4]), (1, [1] * 6)]
)
def test_cached_attention_equals_recomputed(norm, mem_len, lengths):
    """Over several segments, for three kinds of attention and growing and full memories."""
    model = network(CONVOLVED, PLAIN, Attention(3, 4), FeedForward(8), CONVOLVED, norm=norm)
    memories = {"recompute": None, "cached": None}
    with torch.inference_mode():
        for number, length in enumerate(lengths):
            tokens = torch.randint(11, (2, length), generator=torch.Generator().manual_seed(number))
            hidden = {}
            for attention in memories:
                output = model(tokens, memories[attention], mem_len=mem_len, attention=attention)
                hidden[attention], memories[attention] = output.hidden, output.state
            torch.testing.assert_close(hidden["cached"], hidden["recompute"])
            total = sum(lengths[: number + 1])
            held = [None if entry is None else entry.shape[1] for entry in memories["recompute"]]
            window, more = min(mem_len, total), min(mem_len + 2, total)
            assert held == [more, window, window, None, more]
            assert [entry[0].shape[2] for entry in memories["cached"] if entry] == [window] * 4
            assert memories["cached"][0][2].shape == (2, min(2, total), D_MODEL)


@BOTH
def test_reading_token_by_token_equals_a_pass_over_the_text(spec):
    model = network(spec, FeedForward(8), spec)
    tokens = torch.randint(11, (2, 30), generator=torch.Generator().manual_seed(3))
    whole = read(model, tokens, 29, mem_len=6, same_length=True)
    for attention in ("recompute", "cached"):
        parts = read(model, tokens, 1, mem_len=6, same_length=True, attention=attention)
        torch.testing.assert_close(parts, whole)


@BOTH
def test_later_tokens_do_not_change_earlier_outputs(spec):
    model, tokens = network(spec, spec), torch.arange(9)[None]
    changed = tokens.clone()
    changed[:, 6:] = 10 - changed[:, 6:]
    before, after = (model(t, mem_len=4).hidden for t in (tokens, changed))
    assert torch.equal(before[:, :6], after[:, :6]) and not torch.equal(before[:, 6:], after[:, 6:])


def test_options_of_a_supernet_use_the_memory_of_its_path():
    options = (Attention(3, 4), PLAIN, CONVOLVED)
    shared = Architecture(11, D_MODEL, (), dropout=0.0, init_std=0.3)
    supernet = Supernet(shared, options, 2, "none").eval()
    initialise(supernet, torch.Generator().manual_seed(0))
    for choices in ([0, 2], [2, 1]):
        supernet.choose(choices)
        alone = LanguageModel(shared, [b.options[c] for b, c in zip(supernet.blocks, choices, strict=True)]).eval()
        alone.embedding = supernet.embedding
        memories = [None, None]
        for start in range(4):
            tokens = torch.arange(start, start + 5)[None]
            results = [net(tokens, memory, mem_len=3) for net, memory in zip((supernet, alone), memories, strict=True)]
            memories = [result.state for result in results]
            torch.testing.assert_close(results[0].hidden, results[1].hidden, rtol=0, atol=0)


def test_parameters_and_flops_equal_the_closed_forms():
    """Those of the paper, with positions, u, v and LayerNorm."""
    d, modules, m = 12, 3, 4
    layer, relative = modules * d + d * m + d, modules * d + d * m + 2 * d + 2 * d
    assert SparseAttention(3, 4, 3).params(d) == 4 * layer + relative
    assert CONVOLVED.params(d) == layer + 2 * (9 * m**2 + m) + (3 * m**2 + m) + relative
    model = network(PLAIN, CONVOLVED, SparseConvAttention(3, 4, 6))
    assert sum(parameter.numel() for parameter in model.parameters()) == model.architecture.params()
    for attention in ("cached", "recompute"):
        for batch, tgt_len, mem_len in ((2, 8, 24), (3, 7, 16), (1, 16, 0), (1, 4, 3)):
            counted, formula = checked_flops(model, WorkloadConfig(batch, tgt_len, mem_len, attention, "eager"))
            assert counted == pytest.approx(formula, rel=1e-12)


@pytest.mark.parametrize("attention", ["cached", "recompute"])
def test_a_timed_call_with_a_full_memory_runs(attention):
    workload = WorkloadConfig(2, 4, 11, attention, "eager")
    nll = timed_forward(network(CONVOLVED, PLAIN), workload, Runtime(dtype=torch.float64), attention)()
    assert nll.shape == (2, 4) and nll.isfinite().all()


@BOTH
def test_training_lowers_the_loss(spec):
    """The next token is the one three positions back."""
    torch.manual_seed(0)
    model = LanguageModel(Architecture(11, D_MODEL, (spec, FeedForward(24)), dropout=0.0, init_std=0.2))
    initialise(model, torch.Generator().manual_seed(0))
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=0.01), []
    for _ in range(150):
        text = torch.randint(11, (16, 4)).repeat(1, 3)
        optimizer.zero_grad()
        losses.append(model.nll(model(text[:, :-1], mem_len=0).hidden, text[:, 1:])[:, 4:].mean())
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.6 * losses[0]


@BOTH
def test_attention_of_a_parent_with_the_same_block_is_copied(spec):
    small = type(spec)(4, 4, 4)  # as wide as networks of test_parent_start
    blocks = (small, FeedForward(24), Attention(2, 8))
    parent = parent_of(*blocks)
    assert parent.importances[0] is None
    assert_same_sublayers(started(parent, *blocks), parent.model, {0: 0, 1: 1, 2: 2})
    unchanged = started(parent_of(Attention(2, 8), FeedForward(24)), small).blocks[0].sublayer
    assert not torch.equal(unchanged.positions.scales, parent.model.blocks[0].sublayer.positions.scales)


def test_sparse_attention_of_other_modules_starts_from_dense_attention():
    parent = parent_of(SparseAttention(2, 8, 8), FeedForward(24), Attention(2, 8))
    layer = started(parent, SparseAttention(2, 8, 4)).blocks[0].sublayer
    dense = parent.model.blocks[2].sublayer
    projection = Multiplicative(16, 16, 4)
    projection.approximate(dense.output.weight)
    assert torch.equal(layer.u, dense.u) and torch.equal(layer.output.scales, projection.scales)


def test_without_dense_attention_the_nearest_sparse_one_of_the_same_size_is_copied():
    blocks = FeedForward(24), SparseAttention(2, 8, 8), SparseAttention(2, 8, 4)
    parent = parent_of(*blocks)
    assert_same_sublayers(started(parent, blocks[2], blocks[1], blocks[1]), parent.model, {0: 2, 1: 1, 2: 1})


def test_the_nearest_multiplicative_layer_to_a_dense_one():
    """The error has all but the largest singular value of every input; an exact one is found."""
    layer, dense = Multiplicative(5, 12, 3).double(), normal(12, 5)
    layer.approximate(dense)
    left = dense - layer(torch.eye(5, dtype=torch.float64)).T
    singular = np.linalg.svd(dense.T.reshape(5, 3, 4).numpy(), compute_uv=False)
    assert left.square().sum().item() == pytest.approx((singular[:, 1:] ** 2).sum())
    other = Multiplicative(5, 12, 3).double()
    other.approximate(layer(torch.eye(5, dtype=torch.float64)).T)
    torch.testing.assert_close(other(normal(7, 5)), layer(normal(7, 5)))


def test_sparse_attention_starts_from_dense_attention():
    """It is equal if the parent's projections are multiplicative layers."""
    spec = SparseAttention(2, 8, 4)
    parent = parent_of(Attention(2, 8), FeedForward(24))
    dense = parent.model.blocks[0].sublayer
    parts = {"queries": slice(0, 16), "keys": slice(16, 32), "values": slice(32, 48)}
    with torch.no_grad():
        for weight in (*(dense.qkv.weight[rows] for rows in parts.values()), dense.output.weight):
            layer = Multiplicative(16, 16, 4)
            layer.approximate(weight)
            weight.copy_(layer(torch.eye(16)).T)
        layer.approximate(dense.positions.weight)
        dense.positions.weight.copy_(layer(torch.eye(16)).T)
    model = started(parent, spec, FeedForward(24))
    torch.testing.assert_close(logits(model), logits(parent.model), rtol=1e-4, atol=1e-4)


def test_options_and_symbols_of_sparse_attention():
    model = experiment().model  # d_model 32, two heads of 16
    assert model.option("sparse_attention_8") == SparseAttention(2, 16, 8)
    assert model.option("sparse_conv_attention_4") == SparseConvAttention(2, 16, 4)
    assert model.architecture(11, "q8(fc4)x2f").pattern == "q8(fc4)x2f"
    for kind in ("sparse_attention", "sparse_conv_attention"):
        with pytest.raises(UserError, match=f"'{kind}_3' has 3 modules; allowed: 2 or more that divide d_model, 32"):
            model.option(f"{kind}_3")
        with pytest.raises(ValueError, match=f"{kind}: 5 modules do not divide the width, 32"):
            spec = (SparseAttention if kind == "sparse_attention" else SparseConvAttention)(2, 16, 5)
            Architecture.from_dict(Architecture(11, 32, (spec,)).to_dict())
