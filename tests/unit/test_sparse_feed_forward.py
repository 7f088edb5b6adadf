"""Sparse feed-forward layers: inference, training, parameters, FLOPs and initial weights."""

from __future__ import annotations

import math

import pytest
import torch
from test_parent_start import assert_same_sublayers, output, parent_of, started
from toy import experiment, latency_table_of_this_machine

from planer.blocks.sparse_feed_forward import build
from planer.config import WorkloadConfig
from planer.errors import UserError
from planer.evaluation.flops import checked_flops
from planer.models import LanguageModel, initialise
from planer.specs import Architecture, Attention, FeedForward
from planer.specs.sparse_feed_forward import SparseFeedForward

D, F, N = 12, 32, 8


def network(*blocks, vocab_size: int = 11, norm: str = "post") -> LanguageModel:
    """A network of random weights and biases."""
    model = LanguageModel(Architecture(vocab_size, D, blocks, norm=norm, dropout=0.0))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5, generator=generator)
    return model.eval()


def layer(**options):
    """A layer in double precision."""
    return network(SparseFeedForward(F, N, rank=6, **options)).double().blocks[0].sublayer


def tokens(count: int) -> torch.Tensor:
    return torch.randn(count, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def logits_of(sublayer, x: torch.Tensor) -> torch.Tensor:
    """Logits of one token [F]."""
    c = sublayer.controller
    return c.c2 @ (c.c1 @ x) + c.bias


def by_hand(sublayer, x: torch.Tensor, picked: list[int]) -> torch.Tensor:
    """Output of one token [D] as a sum over the picked neurons."""
    y = sublayer.b2.clone()
    probabilities = logits_of(sublayer, x).view(-1, N).softmax(-1).flatten()
    for neuron in picked:
        activation = max((sublayer.w1[neuron] @ x + sublayer.b1[neuron]).item(), 0.0)
        y += activation * sublayer.w2[neuron] * (probabilities[neuron] if sublayer.spec.weighted else 1.0)
    return y


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("relu", ["after", "before"])
@pytest.mark.parametrize("count", [1, N // 4, N // 4 + 1, 9])
def test_inference_runs_the_neuron_with_the_largest_logit(count, relu, weighted):
    """With few tokens rows are gathered, with more all neurons are computed."""
    sublayer, x = layer(relu=relu, weighted=weighted), tokens(count)
    picked = [[b + max(range(N), key=lambda i: lg[b + i]) for b in range(0, F, N)]
              for lg in (logits_of(sublayer, row).tolist() for row in x)]  # fmt: skip
    expected = torch.stack([by_hand(sublayer, *pair) for pair in zip(x, picked, strict=True)])
    assert count < 9 or len({tuple(p) for p in picked}) > 5
    torch.testing.assert_close(sublayer(x), expected)


def test_of_equal_logits_the_first_neuron_runs():
    sublayer, x = layer(), tokens(1)
    with torch.no_grad():
        sublayer.controller.c2.zero_()
        sublayer.controller.bias.zero_()
    for x in (tokens(1), tokens(9)):
        expected = torch.stack([by_hand(sublayer, row, list(range(0, F, N))) for row in x])
        torch.testing.assert_close(sublayer(x), expected)


@pytest.mark.parametrize("relu", ["after", "before"])
def test_soft_training_calls_weight_all_neurons(relu):
    sublayer, x = layer(hard_share=0.0, relu=relu).train(), tokens(5)
    for row, y in zip(x, sublayer(x), strict=True):
        p = logits_of(sublayer, row).view(-1, N).softmax(-1).flatten()
        expected = sublayer.b2 + (p * (sublayer.w1 @ row + sublayer.b1).relu()) @ sublayer.w2
        torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("weighted", [False, True])
def test_hard_training_calls_run_the_sampled_neuron(weighted):
    """The same seed gives the noise: argmax of log p plus temperature times Gumbel noise."""
    sublayer, x = layer(hard_share=1.0, temperature=2.0, weighted=weighted).train(), tokens(5)
    torch.manual_seed(3)
    u = torch.empty(5, F // N, N, dtype=torch.float64).uniform_(1e-6, 1 - 1e-6)
    torch.manual_seed(3)
    y = sublayer(x)
    moved = 0
    for row, noise, ours in zip(x, u, y, strict=True):
        log_p = logits_of(sublayer, row).view(-1, N).log_softmax(-1)
        best = (log_p - 2.0 * torch.log(-torch.log(noise))).argmax(-1)
        moved += (best != log_p.argmax(-1)).sum()
        torch.testing.assert_close(ours, by_hand(sublayer, row, (best + torch.arange(0, F, N)).tolist()))
    assert moved > 0


def test_the_mask_of_a_hard_call_is_one_hot_with_the_gradient_of_the_softmax():
    sublayer = network(SparseFeedForward(F, N, hard_share=1.0)).blocks[0].sublayer
    torch.manual_seed(0)
    logits = torch.randn(200, F // N, N, requires_grad=True)
    mask = sublayer.training_mask(logits)
    assert torch.equal(mask.sum(-1), torch.ones(200, F // N)) and set(mask.unique().tolist()) == {0.0, 1.0}
    direction = torch.randn(mask.shape)
    ours, soft = (torch.autograd.grad((m * direction).sum(), logits)[0] for m in (mask, logits.softmax(-1)))
    torch.testing.assert_close(ours, soft)


def test_frequencies_of_sampled_neurons_and_of_hard_calls():
    sublayer = network(SparseFeedForward(4, 4)).blocks[0].sublayer
    torch.manual_seed(0)
    logits = torch.tensor([0.0, 0.05, 0.1, -0.2]).expand(50_000, 1, 4)
    hard = [mask for mask in (sublayer.training_mask(logits) for _ in range(20)) if (mask == 1).any()]
    frequency = torch.cat(hard).mean((0, 1))
    torch.testing.assert_close(frequency, (logits[0, 0] / 0.1).softmax(-1), atol=0.01, rtol=0)
    calls = [(sublayer.training_mask(logits[:1]) == 1).any().item() for _ in range(2_000)]
    assert sum(calls) / len(calls) == pytest.approx(0.3, abs=0.03)


def test_with_relu_after_the_mask_only_picked_neurons_reach_the_controller():
    """The order changes only the gradients of the controller."""
    x, gradients, outputs = tokens(3)[2:], {}, []
    for relu in ("after", "before"):
        sublayer = layer(hard_share=1.0, relu=relu).train()
        torch.manual_seed(5)
        outputs.append(sublayer(x))
        outputs[-1].square().sum().backward()
        gradients[relu] = {name: parameter.grad for name, parameter in sublayer.named_parameters()}
    assert torch.equal(*outputs)
    for name in ("w1", "b1", "w2", "b2"):
        torch.testing.assert_close(gradients["after"][name], gradients["before"][name])
    ran = gradients["after"]["b1"].view(-1, N).abs().sum(-1) > 0  # the picked neuron's activation is above 0
    reached = {relu: found["controller.bias"].view(-1, N).abs().sum(-1) > 1e-12 for relu, found in gradients.items()}
    assert torch.equal(reached["after"], ran) and 0 < ran.sum() < len(ran)
    assert (reached["before"] & ~ran).any()


def test_gradients_of_a_soft_call_equal_finite_differences():
    sublayer, x = layer(hard_share=0.0).train(), tokens(2).requires_grad_()
    weights = tuple(parameter.detach().requires_grad_() for parameter in sublayer.parameters())
    names = [name for name, _ in sublayer.named_parameters()]

    def run(x, *weights):
        return torch.func.functional_call(sublayer, dict(zip(names, weights, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *weights))


def test_the_controller_stays_in_single_precision_under_autocast():
    sublayer, x = network(SparseFeedForward(F, N)).blocks[0].sublayer, tokens(9).float()
    exact = sublayer.controller(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sublayer.controller(x), exact)
        assert sublayer(x).shape == x.shape


@pytest.mark.parametrize("rank", [0, 5])
def test_parameters_and_flops_equal_the_closed_forms(rank):
    """Those of the paper, with b1 and LayerNorm; d = 12, F = 32, N = 4."""
    spec = SparseFeedForward(F, 4, rank)
    r = rank or 3
    controller = r * (D + F) + F
    assert spec.params(D) == 2 * D * F + F + D + controller + 2 * D
    assert spec.active_params(D) == 2 * D * F // 4 + F // 4 + D + controller + 2 * D
    assert spec.flops(D, 1, 1, 0, "cached") == 2 * (2 * D * F // 4 + r * (D + F))
    assert spec.flops(D, 2, 8, 0, "cached") == 2 * (2 * D * F + r * (D + F))
    model = network(spec, Attention(3, 4), SparseFeedForward(F, 16, rank))
    assert sum(parameter.numel() for parameter in model.parameters()) == model.architecture.params()
    for batch, tgt_len in ((1, 1), (1, 4), (2, 8)):
        counted, formula = checked_flops(model, WorkloadConfig(batch, tgt_len, 8, "cached", "eager"))
        assert counted == formula


def test_initialisation_equals_trax():
    """Glorot-uniform on the matrices, c2's too; sqrt(N) times that for a scaled w2; biases 0."""
    model = LanguageModel(Architecture(11, 64, tuple(SparseFeedForward(256, 16, scaled=s) for s in (False, True))))
    initialise(model, torch.Generator().manual_seed(0))
    plain, scaled = (block.sublayer for block in model.blocks)
    for weight, factor in ((plain.w1, 1), (plain.w2, 1), (scaled.w2, 4), (plain.controller.c1, 1),
                           (plain.controller.c2, 1)):  # fmt: skip
        bound = factor * math.sqrt(6 / sum(weight.shape))
        assert 0.98 * bound < weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert not any(bias.any() for bias in (plain.b1, plain.b2, plain.controller.bias))


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_reading_token_by_token_equals_a_pass_over_the_text(norm):
    model = network(Attention(3, 4), SparseFeedForward(F, N), SparseFeedForward(F, 2), norm=norm)
    text = torch.randint(11, (1, 20), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        whole = model(text, mem_len=6, same_length=True).hidden
        memory, parts = None, []
        for token in text.split(1, dim=1):
            output = model(token, memory, mem_len=6, same_length=True, attention="cached")
            hidden, memory = output.hidden, output.state
            parts.append(hidden)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-5)


def test_training_lowers_the_loss_of_training_and_of_inference():
    """The text counts upwards.  Steps are random, so means of 20 steps are compared."""
    model = network(SparseFeedForward(F, N), SparseFeedForward(F, N))
    initialise(model, torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    text = torch.arange(11)[None]
    losses = []
    torch.manual_seed(0)

    def loss(model):
        return model.nll(model(text, mem_len=0).hidden, (text + 1) % 11).mean()

    before = loss(model.eval()).item()
    model.train()
    for _ in range(120):
        optimizer.zero_grad()
        losses.append(loss(model))
        losses[-1].backward()
        optimizer.step()
    assert sum(losses[-20:]) < 0.3 * sum(losses[:20])
    assert loss(model.eval()) < 0.3 * before


def test_weights_come_from_a_dense_layer_of_the_parent():
    parent = parent_of(Attention(2, 8), FeedForward(24), FeedForward(24))
    model = started(parent, Attention(2, 8), SparseFeedForward(24, 4), SparseFeedForward(48, 4))
    source, own = parent.model.blocks[1].sublayer, model.blocks[1].sublayer
    assert torch.equal(own.w1, source.w1.weight) and torch.equal(own.b1, source.w1.bias)
    assert torch.equal(own.w2, source.w2.weight.T) and torch.equal(own.b2, source.w2.bias)
    wide = model.blocks[2].sublayer
    assert torch.equal(wide.w1[24:], parent.model.blocks[2].sublayer.w1.weight)
    with torch.no_grad():  # with all neurons the output is the dense layer's
        x = output(parent.model, 0)
        dense, mask = source(x)[0], torch.ones(len(x.flatten(0, 1)), 6, 4)
        torch.testing.assert_close(own._masked(x.flatten(0, 1), mask).view_as(dense), dense)


def test_a_sparse_layer_of_the_parent_is_copied():
    blocks = (Attention(2, 8), SparseFeedForward(24, 4), FeedForward(24))
    parent = parent_of(*blocks)
    assert_same_sublayers(started(parent, *blocks), parent.model, {0: 0, 1: 1, 2: 2})
    other = started(parent, blocks[0], SparseFeedForward(24, 6), blocks[2]).blocks[1].sublayer
    assert torch.equal(other.w1, parent.model.blocks[2].sublayer.w1.weight)


def test_without_a_dense_layer_the_nearest_sparse_one_of_the_same_specification_is_copied():
    blocks = Attention(2, 8), SparseFeedForward(24, 4), SparseFeedForward(24, 6)
    parent = parent_of(*blocks)
    assert_same_sublayers(started(parent, blocks[2], blocks[1], blocks[1]), parent.model, {0: 2, 1: 1, 2: 1})


def test_options_and_symbols_of_sparse_feed_forward_layers():
    model = experiment().model  # d_model 32, d_inner 64
    spec = model.option("sparse_feed_forward_16")
    assert spec == SparseFeedForward(64, 16) and spec.rank_in(32) == 2
    assert model.architecture(11, "sn16(fn4)x2").pattern == "sn16(fn4)x2"
    assert [name for name in model.symbols() if name.startswith("n")] == ["n2", "n4", "n8", "n16", "n32", "n64"]
    for wrong in ("sparse_feed_forward_1", "sparse_feed_forward_3", "sparse_feed_forward_128"):
        with pytest.raises(UserError, match=f"'{wrong}' runs one neuron in .*; allowed: 2 or more that divide d_inner"):
            model.option(wrong)
    with pytest.raises(ValueError, match="sparse_feed_forward: 5 does not divide d_inner, 64"):
        Architecture.from_dict(Architecture(11, 32, (SparseFeedForward(64, 5),)).to_dict())
    assert build(spec, model.architecture(11, "s")).sublayer.w1.shape == (64, 32)


def test_settings_apply_to_options_patterns_and_the_latency_table():
    plain, config = experiment(), experiment(model={"blocks": {"sparse_feed_forward": {"rank": 5, "relu": "before"}}})
    spec = config.model.option("sparse_feed_forward_16")
    assert spec == SparseFeedForward(64, 16, 5, "before") and config.model.architecture(11, "n16").blocks == (spec,)
    assert Architecture.from_dict(config.model.architecture(11, "n16").to_dict()).blocks == (spec,)
    sides = [latency_table_of_this_machine(each) for each in (plain, config)]
    with pytest.raises(UserError, match="was measured with blocks unknown, but this run has blocks .*rank.*5"):
        sides[0].check(sides[1].identity)


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([], "model.blocks is \\[\\]; it must be a mapping"),
        ({"feed_forward": {}}, "unknown key model.blocks.feed_forward; did you mean model.blocks.sparse_feed_forward"),
        ({"sparse_feed_forward": 3}, "model.blocks.sparse_feed_forward is 3; it must be a mapping"),
        ({"sparse_feed_forward": {"ranks": 3}}, "unknown key model.blocks.sparse_feed_forward.ranks; did you mean"),
        ({"sparse_feed_forward": {"hard_share": 2}}, "sparse_feed_forward.hard_share is 2; it must be from 0 to 1"),
        ({"sparse_feed_forward": {"relu": "x"}}, "sparse_feed_forward.relu is 'x'; allowed: after, before"),
    ],
)
def test_wrong_settings_are_one_line(blocks, message):
    with pytest.raises(UserError, match=message):
        experiment(model={"blocks": blocks})
