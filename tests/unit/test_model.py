"""The language model: parameters, FLOPs, memory, training, initialisation and files."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

from planer.errors import UserError
from planer.models import LanguageModel, initialise, load, save
from planer.specs import Architecture, Attention, DynamicMoE, FeedForward, MoE, Skip

KINDS = (Attention(4, 4), Attention(1, 4), FeedForward(24), MoE(12, 4, 1), MoE(12, 4, 2), DynamicMoE(24, 6, 5), Skip())
SMALL = Architecture(13, 16, KINDS, init_std=0.2)


def build(architecture=SMALL, seed=0):
    model = LanguageModel(architecture)
    initialise(model, torch.Generator().manual_seed(seed))
    return model


def words(*shape, seed=0):
    return torch.randint(13, shape, generator=torch.Generator().manual_seed(seed))


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


class TestCounts:
    @pytest.mark.parametrize("norm", ["post", "pre"])
    def test_parameters_of_every_kind_of_block(self, norm):
        architecture = dataclasses.replace(SMALL, norm=norm)
        model = LanguageModel(architecture)
        assert [count(block) for block in model.blocks] == [spec.params(16) for spec in KINDS]
        assert count(model) == architecture.params()

    def test_transformer_xl_on_enwik8(self):
        """41,055,436 parameters with u and v shared over the 12 layers; here each layer has its own 2 * 8 * 64."""
        architecture = Architecture(204, 512, (Attention(8, 64), FeedForward(2048)) * 12)
        with torch.device("meta"):
            assert count(LanguageModel(architecture)) == 41_055_436 + 11 * 1024

    @pytest.mark.parametrize("attention", ["recompute", "cached"])
    def test_flops_equal_the_closed_forms(self, attention):
        batch, length, mem_len = 3, 8, 12
        specs = tuple(spec for spec in KINDS if not isinstance(spec, DynamicMoE))
        model = build(dataclasses.replace(SMALL, blocks=specs)).eval()
        memory = None
        with torch.inference_mode():
            for _ in range(4):
                memory = model(words(batch, length), memory, mem_len=mem_len, attention=attention).state
            with FlopCounterMode(display=False) as counter:
                hidden = model(words(batch, length), memory, mem_len=mem_len, attention=attention).hidden
                model.nll(hidden, words(batch, length))
        expected = model.architecture.flops(batch, length, mem_len, attention) * batch * length
        assert counter.get_total_flops() == pytest.approx(expected, rel=1e-12)


class TestMemory:
    def test_holds_the_last_block_inputs_without_gradient(self):
        model = build().eval()
        inputs = []
        for block in model.blocks:
            block.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
        memory = model(words(2, 5), mem_len=8).state
        memory = model(words(2, 5, seed=1), memory, mem_len=8).state
        for number, (spec, entry) in enumerate(zip(KINDS, memory, strict=True)):
            if isinstance(spec, Attention):
                expected = torch.cat((inputs[number], inputs[number + len(KINDS)]), dim=1)[:, -8:]
                assert torch.equal(entry, expected) and not entry.requires_grad
            else:
                assert entry is None

    def test_length_zero(self):
        model = build().eval()
        memory = model(words(2, 5), mem_len=0).state
        assert memory[0].shape == (2, 0, 16)
        after = model(words(2, 5, seed=1), memory, mem_len=0).hidden
        torch.testing.assert_close(after, model(words(2, 5, seed=1), mem_len=0).hidden)

    def test_cached_is_refused_in_training(self):
        with pytest.raises(ValueError, match="cached attention is exact at inference only"):
            build().train()(words(2, 5), mem_len=4, attention="cached")

    def test_unknown_attention_is_refused(self):
        with pytest.raises(ValueError, match="attention is 'flash'; allowed: recompute, cached"):
            build()(words(2, 5), mem_len=4, attention="flash")


def test_embeddings_are_scaled_by_the_root_of_their_width():
    model = build().eval()
    torch.testing.assert_close(model.embed(words(2, 5)), 4.0 * model.embedding.weight[words(2, 5)])


def test_nll_is_a_log_softmax_over_the_tied_embedding():
    model = build().eval()
    torch.nn.init.normal_(model.head.bias)
    hidden, targets = torch.randn(2, 5, 16), words(2, 5)
    logits = hidden.double() @ model.embedding.weight.double().T + model.head.bias.double()
    expected = -logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    nll = model.nll(hidden, targets)
    assert nll.dtype == torch.float32
    torch.testing.assert_close(nll, expected.float())


class TestTraining:
    def test_every_weight_but_the_routers_gets_a_gradient(self):
        model, memory = build().train(), None
        for step in range(2):
            output = model(words(4, 12, seed=step), memory, mem_len=6, wants=("balance",))
            memory = output.state
        balance = sum(aux.get("balance", 0) for aux in output.aux)
        (model.nll(output.hidden, words(4, 12)).mean() + balance).backward()
        missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
        assert missing == ["blocks.5.sublayer.router.v1", "blocks.5.sublayer.router.v2"]

    def test_blocks_return_the_wanted_values_that_they_have(self):
        model = build().train()
        wants = ("balance", "load", "activations", "inputs", "executed")
        found = [set(aux) for aux in model(words(4, 12), mem_len=6, wants=wants).aux]
        mixture = {"balance", "load"}
        assert found == [set(), set(), {"activations"}, mixture, mixture, {"inputs", "executed"}, set()]
        assert [set(aux) for aux in model(words(4, 12), mem_len=6, wants=("load",)).aux][3] == {"load"}
        assert not any(model(words(4, 12), mem_len=6).aux)
        assert [set(aux) for aux in model.eval()(words(4, 12), mem_len=6, wants=wants).aux][3] == {"load"}

    def test_dropout_makes_passes_differ_in_training_only(self):
        model = build()
        assert not torch.equal(*(model.train()(words(2, 5), mem_len=4).hidden for _ in range(2)))
        assert torch.equal(*(model.eval()(words(2, 5), mem_len=4).hidden for _ in range(2)))

    def test_feed_forward_drops_hidden_neurons_and_outputs(self):
        layer, seen = build().feed_forward_blocks()[0].train(), []
        layer.dropout.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
        y, _ = layer(torch.randn(7, 16))
        hidden, output = seen
        assert hidden.shape == (7, 24) and (hidden >= 0).all()
        assert (y != output).any()

    def test_a_small_network_learns_to_use_its_memory(self):
        """In 1 2 1 3 1 4 1 2 ..., read 2 tokens at a time, the number after a 1 depends on the segment before."""
        text = torch.stack([torch.tensor([1, 2, 1, 3, 1, 4]).roll(phase).repeat(21) for phase in range(6)])
        architecture = Architecture(13, 16, (Attention(2, 8), FeedForward(32)) * 2, dropout=0.0, init_std=0.2)
        final = {}
        for mem_len in (0, 4):
            model, memory = build(architecture).train(), None
            optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
            for start in range(0, 120, 2):
                output = model(text[:, start : start + 2], memory, mem_len=mem_len)
                hidden, memory = output.hidden, output.state
                loss = model.nll(hidden, text[:, start + 1 : start + 3])
                optimizer.zero_grad()
                loss.mean().backward()
                optimizer.step()
            final[mem_len] = loss.max().item()
        assert final[4] < 0.1
        assert final[0] > 1.0, "without memory three numbers are equally likely: ln 3 = 1.10"


class TestInitialisation:
    def test_mean_and_deviation_of_weights(self):
        model = build(Architecture(300, 64, (Attention(4, 16), MoE(64, 4, 1), DynamicMoE(64, 8, 32)), init_std=0.02))
        attention, moe, split = (block.sublayer for block in model.blocks)
        initial = (model.embedding.weight, attention.qkv.weight, attention.u, moe.gate, moe.experts.w1, split.w2)
        for weight in initial:
            assert weight.std().item() == pytest.approx(0.02, rel=0.25)
        for bias in (model.head.bias, moe.experts.b1, moe.experts.b2, split.b1, split.b2, model.blocks[0].norm.bias):
            assert not bias.any()
        norm = model.blocks[0].norm.weight
        assert norm.mean().item() == pytest.approx(1, abs=0.01) and 0.01 < norm.std().item() < 0.03
        assert split.router.v1.abs().max().item() == pytest.approx(1 / math.sqrt(64), rel=0.05)

    def test_depends_only_on_the_generator(self):
        torch.manual_seed(0)
        first = build(seed=3).state_dict()
        torch.manual_seed(1)
        second, other = build(seed=3).state_dict(), build(seed=4).state_dict()
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert not torch.equal(first["embedding.weight"], other["embedding.weight"])


class TestFiles:
    def test_round_trip(self, tmp_path):
        model = build(dataclasses.replace(SMALL, norm="pre"), seed=5)
        save(model, tmp_path)
        copied = load(tmp_path)
        assert copied.architecture == model.architecture and not copied.training
        for tau in (0.0, 0.5):
            hidden = []
            for network in (model.eval(), copied):
                network.dynamic_blocks()[0].tau = tau
                hidden.append(network(words(2, 5), mem_len=4).hidden)
            assert torch.equal(*hidden)

    def test_the_tied_embedding_is_stored_once(self, tmp_path):
        save(build(), tmp_path)
        stored = load_file(tmp_path / "model.safetensors")
        assert [name for name, tensor in stored.items() if tensor.shape == (13, 16)] == ["embedding.weight"]
        assert sum(tensor.numel() for tensor in stored.values()) == SMALL.params()

    @pytest.mark.parametrize("name", ["architecture.yaml", "model.safetensors"])
    def test_a_missing_file_is_refused(self, tmp_path, name):
        save(build(), tmp_path)
        (tmp_path / name).unlink()
        self.refused(tmp_path, f"{name} does not exist")

    def test_weights_of_another_architecture_are_refused(self, tmp_path):
        save(build(), tmp_path)
        dataclasses.replace(SMALL, vocab_size=14).save(tmp_path / "architecture.yaml")
        self.refused(tmp_path, r"embedding.weight is float32 \(13, 16\), expected float32 \(14, 16\)")
        dataclasses.replace(SMALL, blocks=KINDS[:-2]).save(tmp_path / "architecture.yaml")
        self.refused(tmp_path, "expected absent")

    @pytest.mark.parametrize("text", ["blocks: [{kind: conv}]", "blocks: [{kind: moe}]"])
    def test_a_damaged_architecture_is_refused(self, tmp_path, text):
        save(build(), tmp_path)
        (tmp_path / "architecture.yaml").write_text(text)
        self.refused(tmp_path, "describes no architecture")

    def test_damaged_weights_are_refused(self, tmp_path):
        save(build(), tmp_path)
        path = tmp_path / "model.safetensors"
        path.write_bytes(path.read_bytes()[:100])
        self.refused(tmp_path, "is no readable safetensors file")

    def refused(self, folder, pattern):
        with pytest.raises(UserError, match=pattern) as caught:
            load(folder)
        assert "\n" not in str(caught.value)

    def test_a_copied_model_is_independent_and_equal(self):
        model = build().eval()
        with torch.inference_mode():
            before = model(words(2, 5), mem_len=4, attention="cached").hidden
        copied = copy.deepcopy(model)
        initialise(model, torch.Generator().manual_seed(9))
        assert torch.equal(copied(words(2, 5), mem_len=4).hidden, before)


def test_lists_of_sublayers_are_in_order():
    model = build()
    assert [model.blocks[2].sublayer] == model.feed_forward_blocks()
    assert [model.blocks[5].sublayer] == model.dynamic_blocks()


def test_skip_returns_its_input():
    x = torch.randn(2, 3, 16)
    assert build().blocks[-1](x, None)[0] is x
