"""Relative attention against a slow reference in double precision."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from planer.blocks.attention import relative_shift
from planer.models import LanguageModel, initialise
from planer.models.positions import sinusoids
from planer.models.transformer import Reading
from planer.specs import Architecture, Attention

D_MODEL = 12
SHAPES = [(5, 0, 8), (5, 3, 8), (5, 5, 5), (7, 3, 3), (1, 0, 4), (1, 4, 4)]
"""(T, M, mem_len): no memory, growing, full, T > M, a single query without and with memory."""


def network(norm="post", heads=3, blocks=1, seed=0):
    spec = Attention(heads, 4)
    model = LanguageModel(Architecture(11, D_MODEL, (spec,) * blocks, norm, dropout=0.0, init_std=0.4))
    initialise(model, torch.Generator().manual_seed(seed))
    return model.double().eval()


def reference(block, x, memory, mem_len, same_length, clamp_len):
    """One attention block by the formula: every (query, key) pair looks up its own position vector."""
    a = block.sublayer
    seen = torch.cat((memory, x), dim=1)
    source = block.norm(seen) if block.pre_norm else seen
    q, k, v = F.linear(source, a.qkv.weight).unflatten(-1, (3, a.num_heads, a.d_head)).unbind(2)
    mixed = attend(a, q[:, memory.shape[1] :], k, v, mem_len, same_length, clamp_len)
    y = x + F.linear(mixed, a.output.weight)
    return y if block.pre_norm else block.norm(y)


def attend(a, q, k, v, mem_len, same_length, clamp_len):
    """Mixed values [B, T, H * Dh] of queries [B, T, H, Dh], keys and values [B, K, H, Dh]."""
    length, keys = q.shape[1], k.shape[1]
    distance = keys - length + torch.arange(length)[:, None] - torch.arange(keys)
    table = sinusoids(distance.clamp(0, clamp_len or keys).flatten(), D_MODEL).double()
    r = a.positions(table).view(length, keys, a.num_heads, a.d_head)
    content = torch.einsum("bihd,bjhd->bhij", q + a.u, k)
    position = torch.einsum("bihd,ijhd->bhij", q + a.v, r)
    scores = (content + position) / math.sqrt(a.d_head)
    visible = (distance >= 0) & (distance <= mem_len) if same_length else distance >= 0
    probabilities = scores.masked_fill(~visible, -torch.inf).softmax(-1)
    return torch.einsum("bhij,bjhd->bihd", probabilities, v).flatten(2)


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("shape", SHAPES)
def test_outputs_and_gradients_of_recomputed_attention(norm, shape):
    length, memory_len, mem_len = shape
    model = network(norm)
    generator = torch.Generator().manual_seed(length)
    x = torch.randn(2, length, D_MODEL, dtype=torch.float64, generator=generator).requires_grad_()
    memory = torch.randn(2, memory_len, D_MODEL, dtype=torch.float64, generator=generator)
    weights = tuple(model.blocks.parameters())
    for same_length, clamp_len in itertools.product((False, True), (0, 3)):
        options = {"mem_len": mem_len, "same_length": same_length, "clamp_len": clamp_len}
        ours = model.run_blocks(x, [memory], **options)[0]
        expected = reference(model.blocks[0], x, memory, **options)
        torch.testing.assert_close(ours, expected, msg=lambda m, o=options: f"{o}: {m}")
        direction = torch.randn(ours.shape, dtype=torch.float64, generator=generator)
        gradients = [torch.autograd.grad((y * direction).sum(), (x, *weights)) for y in (ours, expected)]
        for (name, _), mine, theirs in zip((("x", x), *model.blocks.named_parameters()), *gradients, strict=True):
            torch.testing.assert_close(mine, theirs, msg=lambda m, o=options, n=name: f"{n}, {o}: {m}")


def test_a_distance_off_by_one_is_found():
    model, x = network(), torch.randn(2, 5, D_MODEL, dtype=torch.float64)
    memory = torch.randn(2, 3, D_MODEL, dtype=torch.float64)
    shifted = model.run_blocks(x, [memory[:, 1:]], mem_len=8)[0]
    expected = reference(model.blocks[0], x, memory, 8, False, 0)
    assert (shifted - expected).abs().max() > 1e-3


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize(("mem_len", "lengths"), [(12, [5, 5, 5, 5, 5, 2]), (4, [6, 6, 6, 3]), (0, [4, 4])])
def test_cached_attention_equals_recomputed(norm, mem_len, lengths):
    """Over several segments: with a growing memory, with T above mem_len, with a short last segment."""
    model = network(norm, blocks=3).float()
    generator = torch.Generator().manual_seed(0)
    memories = {"recompute": None, "cached": None}
    with torch.inference_mode():
        for number, length in enumerate(lengths):
            tokens = torch.randint(11, (2, length), generator=generator)
            hidden = {}
            for attention in memories:
                output = model(tokens, memories[attention], mem_len=mem_len, clamp_len=7, attention=attention)
                hidden[attention], memories[attention] = output.hidden, output.state
            torch.testing.assert_close(hidden["cached"], hidden["recompute"], rtol=1e-5, atol=1e-5)
            remembered = min(mem_len, sum(lengths[: number + 1]))
            assert [m.shape[1] for m in memories["recompute"]] == [remembered] * 3
            assert [keys.shape[2] for keys, _ in memories["cached"]] == [remembered] * 3


def read(model, tokens, length, **options):
    """Negative log-likelihood of every token but the first, reading length tokens at a time."""
    memory, parts = None, []
    with torch.inference_mode():
        for inputs, targets in zip(tokens[:, :-1].split(length, 1), tokens[:, 1:].split(length, 1), strict=True):
            output = model(inputs, memory, **options)
            hidden, memory = output.hidden, output.state
            parts.append(model.nll(hidden, targets))
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("attention", ["recompute", "cached"])
def test_with_same_length_the_segmentation_does_not_change_results(attention):
    model = network(blocks=3)
    tokens = torch.randint(11, (2, 49), generator=torch.Generator().manual_seed(3))
    whole = read(model, tokens, 48, mem_len=8, same_length=True)
    for length in (1, 5, 8, 20):
        parts = read(model, tokens, length, mem_len=8, same_length=True, attention=attention)
        torch.testing.assert_close(parts, whole)
    assert (read(model, tokens, 5, mem_len=8) - whole).abs().max() > 1e-3, "without same_length the results differ"


def test_with_a_long_memory_the_segmentation_does_not_change_results():
    model = network(blocks=2)
    tokens = torch.randint(11, (2, 31), generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(read(model, tokens, 7, mem_len=40), read(model, tokens, 30, mem_len=40))


def test_later_tokens_do_not_change_earlier_outputs():
    model = network(blocks=2)
    tokens = torch.randint(11, (2, 9), generator=torch.Generator().manual_seed(5))
    changed = tokens.clone()
    changed[:, 6:] = (changed[:, 6:] + 1) % 11
    before, after = (model(t, mem_len=4).hidden for t in (tokens, changed))
    assert torch.equal(before[:, :6], after[:, :6])
    assert not torch.equal(before[:, 6:], after[:, 6:])


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (3, 3), (4, 7)])
def test_relative_shift_and_its_gradient(shape):
    length, keys = shape
    raw = torch.randn(2, 3, length, keys, dtype=torch.float64).requires_grad_()
    visible = torch.arange(keys) <= keys - length + torch.arange(length)[:, None]
    column = (torch.arange(keys) + length - 1 - torch.arange(length)[:, None]).clamp(max=keys - 1)
    expected = raw.gather(-1, column.expand(2, 3, -1, -1)) * visible
    shifted = relative_shift(raw) * visible
    torch.testing.assert_close(shifted, expected)
    gradients = [torch.autograd.grad(y.square().sum(), raw)[0] for y in (shifted, expected)]
    torch.testing.assert_close(*gradients)


def test_sinusoids():
    distance = torch.tensor([0, 1, 17, 2100])
    angle = distance.double()[:, None] / 10000.0 ** (torch.arange(0, 16, 2) / 16).double()
    expected = torch.cat((angle.sin(), angle.cos()), dim=1)
    torch.testing.assert_close(sinusoids(distance, 16).double(), expected, rtol=0, atol=5e-4)


def test_positions_are_exact_before_they_are_rounded_to_bfloat16():
    model = network().bfloat16()
    x = torch.zeros(1, 1024, D_MODEL, dtype=torch.bfloat16)
    positions = model._segment(x, 0, Reading(mem_len=0)).positions
    exact = sinusoids(torch.arange(1023, -1, -1), D_MODEL)
    assert (positions.float() - exact).abs().max() < 0.003


class TestStoredPositionKeys:
    """Cached attention stores W_r R, which must follow every change of the weights."""

    def run(self, model):
        tokens = torch.arange(10).view(2, 5)
        with torch.inference_mode():
            return model(tokens, mem_len=4, attention="cached").hidden

    def check(self, change):
        model, fresh = network(), network()
        before = self.run(model)
        change(model)
        change(fresh)
        after = self.run(model)
        torch.testing.assert_close(after, self.run(fresh), rtol=0, atol=0)
        assert not torch.equal(after, before.to(after.dtype))

    def test_are_stored(self):
        model = network()
        self.run(model)
        kept = model.blocks[0].sublayer._position_keys[2]
        self.run(model)
        assert model.blocks[0].sublayer._position_keys[2] is kept

    def test_follow_loaded_weights(self):
        self.check(lambda model: model.load_state_dict(network(seed=1).state_dict()))

    def test_follow_weights_written_in_place(self):
        self.check(lambda model: initialise(model, torch.Generator().manual_seed(1)))

    def test_of_networks_made_in_inference_mode_are_not_stored(self):
        with torch.inference_mode():
            model = network()
            before = self.run(model)
            model.load_state_dict(network(seed=1).state_dict())
            assert not torch.equal(self.run(model), before)
            assert torch.equal(self.run(model), self.run(network(seed=1)))

    def test_follow_a_change_of_type(self):
        self.check(lambda model: model.float())

    def test_follow_training(self):
        def train(model):
            model.train()
            hidden = model(torch.arange(10).view(2, 5), mem_len=4).hidden
            hidden.square().sum().backward()
            torch.optim.SGD(model.parameters(), lr=0.1).step()
            model.eval()

        self.check(train)

    def test_follow_autocast(self):
        model = network().float()
        with torch.autocast("cpu", torch.bfloat16):
            rounded = self.run(model)
        assert not torch.equal(self.run(model), rounded)
        torch.testing.assert_close(self.run(model), self.run(network().float()), rtol=0, atol=0)

    def test_are_not_stored_where_gradients_are_recorded(self):
        model = network()
        for _ in range(2):
            model(torch.arange(10).view(2, 5), mem_len=4, attention="cached").hidden.sum().backward()
        assert model.blocks[0].sublayer.positions.weight.grad is not None

    def test_are_not_stored_for_training(self):
        model = network()
        self.run(model)
        model.train()
        assert model.blocks[0].sublayer._position_keys is None and model._last_segment is None


def test_heads_keep_their_width_when_pruned():
    for heads in (1, 2, 3):
        attention = network(heads=heads).blocks[0].sublayer
        assert attention.d_head == 4
        assert attention.qkv.weight.shape == (3 * heads * 4, D_MODEL)


def test_dropout_rates_are_those_of_the_architecture():
    architecture = dataclasses.replace(network().architecture, attention_dropout=0.5, dropout=0.25)
    attention = LanguageModel(architecture).blocks[0].sublayer
    assert (attention.attention_dropout.p, attention.dropout.p) == (0.5, 0.25)
