"""The supernet: outputs, shared weights, gradients and the sampling of options."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_model
from torch import nn

from planer.blocks import attention as blocks
from planer.models import LanguageModel, initialise
from planer.search.latency_loss import LatencyLoss
from planer.search.supernet import Supernet, gumbel, save_supernet
from planer.specs import Architecture, Attention, FeedForward, MoE, Skip

pytestmark = pytest.mark.slow
OPTIONS = (Skip(), Attention(1, 8), Attention(2, 8), FeedForward(24), MoE(24, 3, 1), MoE(24, 3, 2))
SKIP, ATTENTION, FEED_FORWARD, TOP1, TOP2 = 0, 2, 3, 4, 5
SHARED = Architecture(vocab_size=13, d_model=16, blocks=(), dropout=0.0, moe_dropout=0.0, init_std=0.3)
CPU = torch.device("cpu")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def supernet() -> Supernet:
    supernet = Supernet(SHARED, OPTIONS, 3, "all")
    initialise(supernet, seeded(0))
    nn.init.zeros_(supernet.alpha)
    return supernet.train()


def tokens(seed: int = 0, length: int = 5) -> torch.Tensor:
    return torch.randint(13, (2, length), generator=seeded(seed))


def plain_network(supernet: Supernet, choices: list[int]) -> LanguageModel:
    """The network of the chosen options, with the supernet's weights."""
    blocks = [block.options[choice] for block, choice in zip(supernet.blocks, choices, strict=True)]
    network = LanguageModel(SHARED, blocks).train()
    network.embedding, network.head = supernet.embedding, supernet.head
    return network


@pytest.mark.parametrize(("norm", "sharing"), [("post", "all"), ("pre", "all"), ("post", "heads"), ("post", "none")])
@pytest.mark.parametrize("choices", [[ATTENTION, FEED_FORWARD, TOP1], [1, SKIP, ATTENTION], [TOP2, 1, FEED_FORWARD]])
def test_hard_mode_equals_the_network_of_the_chosen_options(norm, sharing, choices):
    supernet = Supernet(Architecture(13, 16, (), norm, 0.0, 0.0, init_std=0.3), OPTIONS, 3, sharing).train()
    initialise(supernet, seeded(0))
    network = plain_network(supernet, choices)
    network.final_norm = supernet.final_norm
    supernet.choose(choices)
    memory = expected_memory = None
    for segment in range(3):
        output = supernet(tokens(segment), memory, mem_len=7)
        hidden, memory = output.hidden, output.state
        output = network(tokens(segment), expected_memory, mem_len=7)
        expected, expected_memory = output.hidden, output.state
        torch.testing.assert_close(hidden, expected, rtol=0, atol=0)
    for choice, entry, expected in zip(choices, memory, expected_memory, strict=True):
        assert (expected is None) == (choice not in (1, ATTENTION))
        assert expected is None or torch.equal(entry, expected)


def test_skips_alone_return_the_embedding(supernet):
    supernet.choose([SKIP] * 3)
    hidden = supernet(tokens(), mem_len=4).hidden
    assert torch.equal(hidden, supernet.embed(tokens()))


def test_soft_mode_is_the_weighted_sum(supernet):
    calls = []
    for block in supernet.blocks:
        block.register_forward_hook(lambda module, given, result: calls.append((module, given, result)))
    mixture = supernet.sample_soft(2.0, seeded(2))
    torch.testing.assert_close(mixture.sum(-1), torch.ones(3))
    memory = supernet(tokens(0), mem_len=7).state
    supernet(tokens(1), memory, mem_len=7)
    assert len(calls) == 6
    for (block, (x, segment, past), (y, state, aux)), weights in zip(list(calls), mixture.repeat(2, 1), strict=True):
        outputs = torch.stack([option(x, segment, past)[0] for option in block.options])
        torch.testing.assert_close(y, torch.einsum("n,nbtd->btd", weights, outputs))
        assert state is None and aux == {}
    x, segment, past = calls[5][1]
    assert past.shape == (2, 5, 16)
    assert not torch.allclose(
        supernet.blocks[2](x, segment, past + torch.randn(16))[0], calls[5][2][0]
    )  # the memory is used


def test_a_one_hot_mixture_equals_hard_mode(supernet):
    for choice in range(len(OPTIONS)):
        supernet.choose([choice] * 3)
        hard = supernet(tokens(), mem_len=4).hidden
        for block in supernet.blocks:
            block.mixture = torch.nn.functional.one_hot(torch.tensor(choice), len(OPTIONS)).float()
        soft = supernet(tokens(), mem_len=4).hidden
        torch.testing.assert_close(soft, hard)
        supernet.choose([SKIP] * 3)  # this ends soft mode
        assert torch.equal(supernet(tokens(), mem_len=4).hidden, supernet.embed(tokens()))


@pytest.mark.parametrize("choices", [[SKIP, SKIP, SKIP], [FEED_FORWARD, ATTENTION, TOP1], None])
def test_the_memory_of_a_position_is_its_inputs_for_every_choice(supernet, choices):
    """A position that skips in one segment may attend in the next one and then needs its earlier inputs."""
    inputs: list[list[torch.Tensor]] = [[], [], []]
    for position, block in enumerate(supernet.blocks):
        block.register_forward_pre_hook(lambda module, given, seen=inputs[position]: seen.append(given[0].detach()))
    memory = None
    for segment in range(3):
        if choices is None:
            supernet.sample_soft(1.0, seeded(segment))
        else:
            supernet.choose(choices[segment:] + choices[:segment])
        memory = supernet(tokens(segment), memory, mem_len=8).state
        kept = min(5 * (segment + 1), 8)
        for entry, seen in zip(memory, inputs, strict=True):
            assert entry.shape == (2, kept, 16) and not entry.requires_grad
            assert torch.equal(entry, torch.cat(seen, dim=1)[:, -kept:])


@pytest.mark.parametrize("memory", [None, torch.randn(2, 4, 16, generator=seeded(1))])
def test_fewer_heads_are_the_first_heads_of_the_widest_attention(supernet, memory):
    """Outputs equal those of a separate layer with these weights.  Only the first heads get gradients."""
    block = supernet.blocks[0]
    narrow, wide = block.options[1].sublayer, block.options[ATTENTION].sublayer
    own = blocks.Attention(OPTIONS[1], 16, 0.0, 0.0)
    own.load_state_dict(narrow.weights())
    given = []
    block.register_forward_pre_hook(lambda module, inputs: given.append(inputs))
    supernet.choose([1, SKIP, SKIP])
    supernet(tokens(), mem_len=4)
    x, segment, _ = given[0]
    if memory is not None:
        supernet(tokens(), [memory] * 3, mem_len=4)
        x, segment, _ = given[1]
    y, _ = narrow(x.detach(), segment, memory)
    torch.testing.assert_close(y, own(x.detach(), segment, memory)[0], rtol=0, atol=0)
    y.square().sum().backward()
    width = narrow.width
    assert wide.output.weight.grad[:, :width].abs().min() > 0 and not wide.output.weight.grad[:, width:].any()
    assert wide.u.grad[:1].any() and not wide.u.grad[1:].any()
    parts = wide.qkv.weight.grad.unflatten(0, (3, -1))
    assert all(part[:width].any() for part in parts) and not parts[:, width:].any()


def test_a_narrow_attention_adds_only_its_norm(supernet):
    block = supernet.blocks[0]
    own = [name for name, _ in block.named_parameters() if name.startswith("options.1.")]
    assert {name for name in own if "norm" not in name} == {
        f"options.1.sublayer.wide.{name}" for name in ("u", "v", "qkv.weight", "positions.weight", "output.weight")
    }
    assert not [name for name, _ in block.named_parameters() if name.startswith(f"options.{ATTENTION}.sublayer")]
    assert block.options[1].sublayer.wide is block.options[ATTENTION].sublayer


def test_mixtures_share_experts_and_have_separate_routers(supernet):
    for block in supernet.blocks:
        top1, top2 = (block.options[option].sublayer for option in (TOP1, TOP2))
        assert top1.experts is top2.experts and (top1.top_k, top2.top_k) == (1, 2)
        assert top1.gate is not top2.gate and not torch.equal(top1.gate, top2.gate)
        assert all(parameter.stacked for parameter in top1.experts.parameters())
    assert supernet.blocks[0].options[TOP1].sublayer.experts is not supernet.blocks[1].options[TOP1].sublayer.experts


EXPERTS = 3 * (2 * 16 * 24 + 24 + 16)
NARROW = OPTIONS[1].params(16) - 2 * 16
"""Parameters of the experts of a mixture, and of attention with one head without its LayerNorm."""


@pytest.mark.parametrize(("sharing", "saved"), [("all", EXPERTS + NARROW), ("heads", NARROW), ("none", 0)])
def test_the_weights_hold_each_parameter_once_and_not_alpha(sharing, saved):
    supernet = Supernet(SHARED, OPTIONS, 3, sharing)
    weights = supernet.weights()
    assert len({id(parameter) for parameter in weights}) == len(weights)
    assert all(parameter is not supernet.alpha for parameter in weights)
    per_position = sum(spec.params(16) for spec in OPTIONS) - saved
    assert sum(parameter.numel() for parameter in weights) == 3 * per_position + 13 * (16 + 1)
    assert len(weights) + 1 == len(list(supernet.parameters()))


def test_without_mixtures_there_are_no_experts():
    supernet = Supernet(SHARED, OPTIONS[:4], 2, "all")
    assert not [name for name in supernet.state_dict() if "experts" in name] and supernet.alpha.shape == (2, 4)


def test_a_hard_step_trains_only_the_chosen_options(supernet):
    choices = [TOP1, ATTENTION, SKIP]
    supernet.choose(choices)
    hidden = supernet(tokens(), mem_len=4).hidden
    supernet.nll(hidden, tokens(9)).mean().backward()
    assert supernet.alpha.grad is None and supernet.embedding.weight.grad.abs().sum() > 0
    for block, choice in zip(supernet.blocks, choices, strict=True):
        trained = {id(parameter) for parameter in block.options[choice].parameters()}
        for parameter in block.parameters():
            assert (parameter.grad is not None) == (id(parameter) in trained)
    experts = supernet.blocks[0].options[TOP2].sublayer.experts  # shared by top-1, which is chosen, and top-2
    assert experts.w1.grad is not None and supernet.blocks[0].options[TOP2].sublayer.gate.grad is None


def test_the_gradient_of_alpha_is_that_of_the_softmax(supernet):
    """dL/dalpha_bi = P_bi (g_bi - sum_j P_bj g_bj) / T, g = dL/dP."""
    mixture = supernet.sample_soft(2.0, seeded(1))
    mixture.retain_grad()
    hidden = supernet(tokens(), mem_len=4).hidden
    supernet.nll(hidden, tokens(9)).mean().backward()
    g, p = mixture.grad, mixture.detach()
    assert (g.abs() > 0).all()
    torch.testing.assert_close(supernet.alpha.grad, p * (g - (p * g).sum(-1, keepdim=True)) / 2.0)


@pytest.mark.parametrize(("fair", "shares"), [(True, [1, 1, 1, 2, 1, 1]), (False, [1, 1, 1, 1, 1, 1])])
def test_the_frequencies_of_hard_samples(supernet, fair, shares):
    nn.init.normal_(supernet.alpha, generator=seeded(3))
    steps = 20_000
    choices = supernet.sample_hard(steps, seeded(4), fair)
    assert choices.shape == (steps, 3)
    counts = torch.nn.functional.one_hot(choices, len(OPTIONS)).sum(0)
    chances = supernet.alpha.detach().exp() * torch.tensor(shares)
    expected = steps * chances / chances.sum(-1, keepdim=True)
    chi_square = ((counts - expected).square() / expected).sum(-1)
    assert (chi_square < 25.7).all()  # the quantile of 0.9999 with 5 degrees of freedom
    uniform = (counts - steps / 6).square().sum(-1) / (steps / 6)
    assert (uniform > 100).all()  # equal frequencies are refuted


def test_kinds_of_options(supernet):
    assert supernet.kinds == [[SKIP], [1, ATTENTION], [FEED_FORWARD], [TOP1, TOP2]]
    wide = Supernet(SHARED, (FeedForward(24), Skip(), FeedForward(24, 4)), 1, "all")
    assert wide.kinds == [[0, 2], [1]]


def test_a_cycle_of_fair_samples_has_each_kind_twice_and_skip_once(supernet):
    choices = supernet.sample_fair(33, seeded(5))
    assert choices.shape == (33, 3)
    kind = {option: number for number, members in enumerate(supernet.kinds) for option in members}
    for position in range(3):
        column = choices[:, position].tolist()
        for start in range(0, 28, 7):
            assert sorted(kind[option] for option in column[start : start + 7]) == [0, 1, 1, 2, 2, 3, 3]
        for start in range(0, 28, 14):  # the options of a kind alternate
            assert sorted(column[start : start + 14]) == [0, 0, 1, 1, 2, 2, 3, 3, 3, 3, 4, 4, 5, 5]
    assert not torch.equal(choices[:, 0], choices[:, 1])  # the positions have different orders
    assert not torch.equal(choices[:14], choices[14:28])  # and so have the cycles


def test_soft_samples_are_sharper_at_a_lower_temperature(supernet):
    nn.init.normal_(supernet.alpha, generator=seeded(3))
    noise = gumbel((3, 6), seeded(6))
    for temperature in (5.0, 1.0, 0.1):
        mixture = supernet.sample_soft(temperature, seeded(6))
        torch.testing.assert_close(mixture, ((supernet.alpha + noise) / temperature).softmax(-1))
        assert mixture.requires_grad and mixture.dtype == torch.float32
    assert mixture.max(-1).values.min() > 0.9 and supernet.sample_soft(5.0, seeded(6)).max() < 0.6


def test_the_moments_of_gumbel_noise():
    noise = gumbel((200_000,), seeded(7)).double()
    assert noise.mean().item() == pytest.approx(0.577216, abs=0.015)  # Euler's constant; 5 standard errors
    assert noise.var().item() == pytest.approx(torch.pi**2 / 6, abs=0.05)
    assert noise.isfinite().all() and noise.quantile(0.5).item() == pytest.approx(0.366513, abs=0.015)  # -log log 2


@pytest.mark.parametrize("target, on", [(0.3, True), (0.9, False)])
def test_the_gradient_of_the_expected_latency(supernet, target, on):
    """It equals central differences in double precision with the same Gumbel noise."""
    ms, fixed, temperature = [0.0, 1.5, 3.0, 2.0, 2.5, 4.5], 0.7, 0.8
    loss = LatencyLoss(ms, fixed, 10.0, target, "switch", 2.0, CPU)
    nn.init.normal_(supernet.alpha, generator=seeded(8))
    penalty, ratio, beta = loss(supernet.sample_soft(temperature, seeded(9)))
    noise = gumbel((3, 6), seeded(9)).double()

    def exact(alpha: torch.Tensor) -> float:
        expected = ((alpha + noise) / temperature).softmax(-1) @ torch.tensor(ms, dtype=torch.float64)
        return ((fixed + expected.sum()) / (10.0 * target)).item()

    alpha = supernet.alpha.detach().double()
    assert ratio.item() == pytest.approx(exact(alpha), rel=1e-5)
    assert (ratio.item() > 1) == on and beta.item() == (2.0 if on else 0.0)
    penalty.backward()
    gradient = torch.zeros_like(alpha)
    for index in range(alpha.numel()):
        step = torch.zeros(alpha.numel(), dtype=torch.float64)
        step[index] = 1e-5
        step = step.view_as(alpha)
        gradient.view(-1)[index] = (exact(alpha + step) - exact(alpha - step)) / 2e-5
    expected = (2.0 if on else 0.0) * gradient
    torch.testing.assert_close(supernet.alpha.grad.double(), expected, rtol=1e-4, atol=1e-6)
    assert not on or supernet.alpha.grad.abs().max() > 0.01


def test_a_file_stores_shared_weights_once(supernet, tmp_path):
    for name in ("first", "second"):
        save_supernet(supernet, tmp_path / name)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    assert (tmp_path / "first").stat().st_size < 4 * sum(p.numel() for p in supernet.parameters()) + 2**14
    other = Supernet(SHARED, OPTIONS, 3, "all")
    load_model(other, tmp_path / "first")
    state, expected = other.state_dict(), supernet.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
