"""Expert feed-forward layers against the definition, one token at a time, in double precision."""

from __future__ import annotations

import pytest
import torch

from planer.kernels.expert_ffn import expert_ffn, expert_ffn_reference
from planer.kernels.routing import Pairs, top_k

D, NEURONS = 6, 5


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()


def weights(experts):
    return draw(experts, NEURONS, D), draw(experts, NEURONS), draw(experts, D, NEURONS), draw(experts, D)


def gradients(y, tensors):
    target = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    return torch.autograd.grad((y * target).sum(), tensors, materialize_grads=True)


def check(x, logits, k):
    w = weights(logits.shape[1])
    results = []
    for function in (expert_ffn, expert_ffn_reference):
        pairs, _ = top_k(logits, k)
        y = function(x, *w, pairs)
        results.append((y, *gradients(y, (x, logits, *w))))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("tokens", [1, 17])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_outputs_and_all_gradients(tokens, k):
    check(draw(tokens, D), draw(tokens, 4), k)


@pytest.mark.parametrize("k", [1, 2])
def test_experts_that_receive_nothing(k):
    logits = torch.full((9, 4), -5.0, dtype=torch.float64)
    logits[:, 2], logits[:, 3] = 5.0, 4.0
    check(draw(9, D), logits.requires_grad_(), k)


def test_empty_experts_get_zero_gradients_not_none():
    x, w = draw(3, D), weights(4)
    pairs = Pairs(torch.arange(3), torch.full((3,), 1), torch.ones(3, dtype=torch.float64), 3, 4, 1)
    expert_ffn(x, *w, pairs).sum().backward()
    for parameter in w:
        assert parameter.grad[1].abs().sum() > 0
        assert parameter.grad[[0, 2, 3]].abs().sum() == 0


def test_no_tokens():
    x, w = draw(0, D), weights(3)
    pairs, _ = top_k(torch.zeros(0, 3, dtype=torch.float64), 2)
    y = expert_ffn(x, *w, pairs)
    assert y.shape == (0, D)
    assert all(not grad.any() for grad in gradients(y, w))


def test_tokens_with_different_numbers_of_experts():
    x, w = draw(4, D), weights(3)
    token, expert = torch.tensor([0, 0, 0, 2, 3, 3]), torch.tensor([2, 0, 1, 1, 2, 0])
    for gate in (None, draw(6)):
        pairs = Pairs(token, expert, gate, 4, 3)
        y = expert_ffn(x, *w, pairs)
        torch.testing.assert_close(y, expert_ffn_reference(x, *w, pairs))
        assert not y[1].any(), "a token without experts adds nothing"


def test_permuting_tokens_permutes_outputs():
    x, logits, w = draw(11, D), draw(11, 4), weights(4)
    permutation = torch.randperm(11, generator=torch.Generator().manual_seed(2))
    y = expert_ffn(x, *w, top_k(logits, 2)[0])
    shuffled = expert_ffn(x[permutation], *w, top_k(logits[permutation], 2)[0])
    torch.testing.assert_close(shuffled, y[permutation])


def test_dropout_acts_on_hidden_neurons_only_in_training():
    x, w = draw(200, D), weights(2)
    pairs, _ = top_k(draw(200, 2), 1)
    plain = expert_ffn(x, *w, pairs)
    torch.testing.assert_close(expert_ffn(x, *w, pairs, 0.5, training=False), plain)
    torch.manual_seed(0)
    dropped = expert_ffn(x, *w, pairs, 0.5, training=True)
    assert not torch.allclose(dropped, plain)
    only_bias = expert_ffn(x, *w, pairs, 1.0, training=True)
    torch.testing.assert_close(only_bias, pairs.gate[:, None] * w[3][pairs.expert])
