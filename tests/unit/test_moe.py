"""Blocks of mixtures of experts and of dynamically executed experts."""

from __future__ import annotations

import pytest
import torch

from planer.blocks.moe import balance_loss
from planer.kernels.dynamic_ffn import dynamic_ffn_reference
from planer.kernels.routing import linear_fp32
from planer.models import LanguageModel, initialise
from planer.specs import Architecture, Attention, DynamicMoE, FeedForward, MoE

D = 8
ARCHITECTURE = Architecture(11, D, (), dropout=0.0, init_std=0.5)


def sublayer(spec, seed=0):
    model = LanguageModel(ARCHITECTURE, [spec.build(ARCHITECTURE)])
    initialise(model, torch.Generator().manual_seed(seed))
    return model.double().eval().blocks[0].sublayer


def tokens(n, seed=0):
    return torch.randn(n, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def by_hand(moe, x, renormalise):
    """Outputs of a mixture, token by token."""
    e, out = moe.experts, []
    for row in x:
        probabilities = (moe.gate @ row).softmax(0)
        best = probabilities.argsort(descending=True)[: moe.top_k]
        gates = probabilities[best] / (probabilities[best].sum() if renormalise else 1)
        out.append(
            sum(g * (e.w2[c] @ torch.relu(e.w1[c] @ row + e.b1[c]) + e.b2[c]) for g, c in zip(gates, best, strict=True))
        )
    return torch.stack(out)


class TestMoE:
    @pytest.mark.parametrize("top_k", [1, 2])
    def test_equals_a_loop_over_tokens(self, top_k):
        moe = sublayer(MoE(6, 5, top_k))
        torch.nn.init.normal_(moe.experts.b1)
        torch.nn.init.normal_(moe.experts.b2)
        x = tokens(24).requires_grad_()
        results = []
        for y in (moe(x.view(4, 6, D))[0].flatten(0, 1), by_hand(moe, x, renormalise=top_k > 1)):
            wanted = (x, *moe.parameters())
            results.append((y, *torch.autograd.grad(y.square().sum(), wanted)))
        for ours, expected in zip(*results, strict=True):
            torch.testing.assert_close(ours, expected)

    def test_experts_without_tokens(self):
        moe = sublayer(MoE(6, 5, 1))
        with torch.no_grad():
            moe.gate.zero_()
        x = tokens(7)
        y, aux = moe(x, ("load",))
        torch.testing.assert_close(y, by_hand(moe, x, renormalise=False))
        assert aux["load"].tolist() == [7, 0, 0, 0, 0]

    def test_equal_experts_equal_a_dense_layer(self):
        moe, dense = sublayer(MoE(6, 4, 2)), sublayer(FeedForward(6))
        with torch.no_grad():
            for stacked, shared in zip(moe.experts.parameters(), dense.parameters(), strict=True):
                stacked.copy_(shared)
        torch.testing.assert_close(moe(tokens(9))[0], dense(tokens(9))[0])

    def test_balance_is_1_if_even_and_the_number_of_experts_if_one_has_all_tokens(self):
        even = torch.full((10, 4), 0.25)
        one = torch.zeros(10, 4)
        one[:, 2] = 1
        assert balance_loss(torch.tensor([5, 5, 5, 5]), even).item() == pytest.approx(1)
        assert balance_loss(torch.tensor([0, 0, 10, 0]), one).item() == pytest.approx(4)

    def test_balance_and_load_of_a_training_pass(self):
        moe = sublayer(MoE(6, 4, 2)).train()
        x = tokens(50)
        _, aux = moe(x, ("balance", "load"))
        probabilities = (x @ moe.gate.T).softmax(-1)
        chosen = probabilities.topk(2).indices
        load = torch.stack([(chosen == e).sum() for e in range(4)])
        assert aux["load"].tolist() == load.tolist()
        expected = 4 * (load / 100 * probabilities.mean(0)).sum()
        torch.testing.assert_close(aux["balance"], expected, check_dtype=False)
        aux["balance"].backward()
        assert moe.gate.grad.abs().sum() > 0
        y, aux = moe.eval()(x, ("balance",))
        assert y.shape == x.shape and aux == {}
        assert moe.train()(x)[1] == {}, "only wanted values are returned"

    def test_no_tokens_have_balance_0(self):
        moe = sublayer(MoE(6, 4, 2)).train()
        y, aux = moe(tokens(0), ("balance", "load"))
        (y.sum() + aux["balance"]).backward()
        assert y.shape == (0, D)
        assert aux["balance"].item() == 0
        assert aux["load"].tolist() == [0, 0, 0, 0]
        assert all(not parameter.grad.any() for parameter in moe.parameters())

    def test_lowering_the_balance_loss_evens_the_load(self):
        moe = sublayer(MoE(2, 4, 1)).train()
        optimizer = torch.optim.Adam([moe.gate], lr=0.05)
        x = tokens(200) + 2
        before = moe(x, ("load",))[1]["load"].max().item()
        for _ in range(60):
            aux = moe(x, ("balance", "load"))[1]
            optimizer.zero_grad()
            aux["balance"].backward()
            optimizer.step()
        assert aux["load"].max().item() < before * 0.7

    def test_moe_dropout_acts_on_hidden_neurons_and_on_the_output(self):
        architecture = Architecture(11, D, (MoE(6, 4, 1),), dropout=0.0, moe_dropout=1.0)
        moe = LanguageModel(architecture).blocks[0].sublayer.train()
        torch.nn.init.normal_(moe.experts.w2)
        torch.nn.init.normal_(moe.experts.b1)
        torch.nn.init.ones_(moe.experts.b2)
        before_output = []
        moe.dropout.register_forward_pre_hook(lambda _, arguments: before_output.append(arguments[0]))
        assert not moe(tokens(5).float())[0].any()
        torch.testing.assert_close(
            before_output[0], torch.full((5, D), 0.25), msg="gate times b2: all neurons are dropped"
        )

    def test_shared_experts_are_counted_once_and_trained_by_both(self):
        first = MoE(6, 4, 1).build(ARCHITECTURE)
        second = MoE(6, 4, 2).build(ARCHITECTURE)
        second.sublayer.experts = first.sublayer.experts
        model = LanguageModel(ARCHITECTURE, [first, second])
        assert model.blocks[0].sublayer.experts is model.blocks[1].sublayer.experts
        own = MoE(6, 4, 1).params(D) + MoE(6, 4, 2).params(D)
        shared = sum(p.numel() for p in first.sublayer.experts.parameters())
        assert sum(p.numel() for p in model.blocks.parameters()) == own - shared

    def test_stacked_weights_are_marked(self):
        moe = sublayer(MoE(6, 4, 1))
        assert all(p.stacked for p in moe.experts.parameters())
        assert not hasattr(moe.gate, "stacked")


class TestDynamicMoE:
    SPEC = DynamicMoE(d_inner=24, expert_size=4, router_width=5)

    def layers(self):
        """A dense layer, and the same layer split into experts."""
        dense, split = sublayer(FeedForward(24)), sublayer(self.SPEC, seed=1)
        with torch.no_grad():
            torch.nn.init.normal_(dense.w1.bias)
            torch.nn.init.normal_(dense.w2.bias)
            split.w1.copy_(dense.w1.weight)
            split.b1.copy_(dense.w1.bias)
            split.w2.copy_(dense.w2.weight.T)
            split.b2.copy_(dense.w2.bias)
        return dense, split

    def test_tau_0_equals_the_dense_layer_and_runs_no_router(self, monkeypatch):
        dense, split = self.layers()
        monkeypatch.setattr(split, "router_scores", lambda x: pytest.fail("the router ran"))
        x = tokens(20).view(4, 5, D)
        y, aux = split(x, ("executed", "inputs"))
        torch.testing.assert_close(y, dense(x)[0])
        assert aux["executed"].item() == 20 * 6 and aux["inputs"] is x

    def test_a_tiny_threshold_equals_the_dense_layer(self):
        dense, split = self.layers()
        split.tau = 1e-12
        torch.testing.assert_close(split(tokens(20))[0], dense(tokens(20))[0])

    @pytest.mark.parametrize("tau", [0.3, 1.0])
    def test_a_threshold_runs_only_the_chosen_experts(self, tau):
        _, split = self.layers()
        x = tokens(20)
        split.tau = tau
        y, aux = split(x.view(4, 5, D), ("executed",))
        y = y.flatten(0, 1)
        scores = (torch.relu(x @ split.router.v1.T) @ split.router.v2.T).abs()
        mask = scores >= tau * scores.amax(1, keepdim=True)
        torch.testing.assert_close(y, dynamic_ffn_reference(x, split.w1, split.b1, split.w2, split.b2, mask))
        assert 20 <= aux["executed"].item() == mask.sum().item() < 20 * 6

    @pytest.mark.parametrize("size", [0, 5, 48])
    def test_experts_that_do_not_divide_the_neurons_are_refused(self, size):
        with pytest.raises(ValueError, match=f"expert_size is {size}; it must divide the number of neurons, 24"):
            DynamicMoE(d_inner=24, expert_size=size, router_width=5).build(ARCHITECTURE)

    def test_a_router_of_nan_runs_all_experts(self):
        dense, split = self.layers()
        split.tau = 0.5
        torch.nn.init.constant_(split.router.v2, float("nan"))
        y, aux = split(tokens(20), ("executed",))
        torch.testing.assert_close(y, dense(tokens(20))[0])
        assert aux["executed"].item() == 20 * 6

    def test_a_threshold_is_refused_in_training(self):
        _, split = self.layers()
        split.tau = 0.5
        with pytest.raises(ValueError, match="tau is 0.5: a threshold is for inference"):
            split.train()(tokens(3))

    def test_experts_have_gradients_and_the_router_none(self):
        _, split = self.layers()
        split.train()(tokens(3))[0].sum().backward()
        assert split.w1.grad is not None and split.router.v1.grad is None


def test_routers_ignore_autocast():
    x, weight = torch.randn(5, 8), torch.randn(3, 8)
    exact = x @ weight.T
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(linear_fp32(x, weight), exact)
        assert linear_fp32(x.bfloat16(), weight.bfloat16()).dtype == torch.float32


def test_every_kind_of_block_runs_in_bfloat16_autocast():
    specs = (Attention(2, 4), FeedForward(16), MoE(8, 4, 1), MoE(8, 4, 2), DynamicMoE(16, 4, 3))
    model = LanguageModel(Architecture(11, D, specs, dropout=0.0, init_std=0.2))
    initialise(model, torch.Generator().manual_seed(0))
    inputs = torch.randint(11, (3, 6), generator=torch.Generator().manual_seed(0))
    exact = model.nll(model(inputs, mem_len=4).hidden, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(inputs, mem_len=4, wants=("balance",))
        nll = model.nll(output.hidden, inputs)
    assert nll.dtype == torch.float32
    (nll.mean() + sum(aux.get("balance", 0) for aux in output.aux)).backward()
    assert all(p.grad.dtype == torch.float32 for n, p in model.named_parameters() if "router" not in n)
    torch.testing.assert_close(nll, exact, rtol=0.05, atol=0.05)
    model.dynamic_blocks()[0].tau = 0.4
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        assert model.eval()(inputs, mem_len=4).hidden.isfinite().all()
