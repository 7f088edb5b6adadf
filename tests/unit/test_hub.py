"""Exported networks in transformers."""

from __future__ import annotations

import pytest
import torch

import planer
from planer.errors import UserError
from planer.files import write_json
from planer.heads import AdaptiveSoftmax
from planer.models import LanguageModel, initialise, save
from planer.models.export import export_network
from planer.specs import Architecture, Attention, DynamicMoE, FeedForward, MoE, Skip

transformers = pytest.importorskip("transformers", reason="the package transformers is not installed")
BLOCKS = (Attention(2, 8), FeedForward(32), MoE(32, 4, 2), Skip(), DynamicMoE(32, 8, 4), Attention(1, 8))
READING = {"mem_len": 512, "same_length": True, "attention": "cached"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An exported network of every kind of block, pre-norm, which has a final norm."""
    home = tmp_path_factory.mktemp("hub")
    model = LanguageModel(Architecture(256, 16, BLOCKS, norm="pre", init_std=0.5))
    initialise(model, torch.Generator().manual_seed(0))
    save(model, home / "network")
    write_json(home / "network/vocab.json", list(range(256)))
    export_network(home / "network", home / "hf")
    return home / "hf"


@pytest.fixture(scope="module")
def loaded(folder):
    import planer.models.hub  # noqa: F401  (registers the classes)

    return transformers.AutoModelForCausalLM.from_pretrained(folder)


@pytest.fixture
def prompt(folder):
    return transformers.AutoTokenizer.from_pretrained(folder)("the caf\u00e9", return_tensors="pt").input_ids


def test_logits_have_the_same_bits(folder, loaded, prompt):
    network = planer.load(folder)
    with torch.no_grad():
        expected = network.logits(network(prompt, **READING).hidden)
        assert torch.equal(loaded(prompt).logits, expected)
        first = loaded(prompt[:, :3])
        rest = loaded(prompt[:, 3:], cache=first.cache).logits
    assert torch.allclose(torch.cat((first.logits, rest), 1), expected, atol=1e-5)


def test_text_is_the_same(folder, loaded, prompt):
    written = loaded.generate(prompt, max_new_tokens=20, do_sample=False)[0].tolist()
    assert written == planer.load(folder).generate(prompt[0].tolist(), tokens=20)
    uncached = loaded.generate(prompt, max_new_tokens=20, do_sample=False, use_cache=False)[0].tolist()
    assert written == uncached


def test_a_network_saved_by_transformers_is_the_same(loaded, prompt, tmp_path):
    loaded.save_pretrained(tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".bin", ".pt", ".pkl")]
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(prompt).logits, loaded(prompt).logits)
    options = {"max_new_tokens": 20, "do_sample": False}
    assert torch.equal(again.generate(prompt, **options), loaded.generate(prompt, **options))


def test_the_tokenizer_reads_bytes(folder, prompt):
    assert prompt[0].tolist() == list("the caf\u00e9".encode())
    assert transformers.AutoTokenizer.from_pretrained(folder).decode(prompt[0]) == "the caf\u00e9"


def test_labels_give_the_loss_of_the_network(folder, loaded, prompt):
    network = planer.load(folder)
    with torch.no_grad():
        expected = network.nll(network(prompt[:, :-1], **READING).hidden, prompt[:, 1:]).mean()
        assert loaded(prompt, labels=prompt).loss == pytest.approx(expected.item(), rel=1e-5)


def test_padding_is_refused(loaded, prompt):
    mask = torch.ones_like(prompt)
    mask[0, 0] = 0
    with pytest.raises(ValueError, match="take no padding"):
        loaded(prompt, attention_mask=mask)


def test_hidden_states_of_single_blocks_are_refused(loaded, prompt):
    with pytest.raises(ValueError, match="leave out output_hidden_states"):
        loaded(prompt, output_hidden_states=True)
    assert loaded(prompt, output_hidden_states=False).hidden_states is None


@pytest.mark.parametrize("key", ["mem_len", "clamp_len"])
def test_impossible_lengths_are_refused(loaded, key):
    with pytest.raises(UserError, match=f"config: {key} is -5; it must be from 0 to 1,000,000"):
        type(loaded.config)(**{key: -5})


def test_whole_numbers_with_a_point_are_lengths(loaded):
    config = type(loaded.config)(mem_len=8.0, clamp_len=4.0)
    assert all(type(length) is int for length in (config.mem_len, config.clamp_len))


def test_an_adaptive_softmax_is_exported(tmp_path):
    """Its logits are log-probabilities, and its embedding has several tables."""
    import planer.models.hub  # noqa: F401  (registers the classes)

    head = AdaptiveSoftmax((64, 128), 2)
    model = LanguageModel(Architecture(256, 16, BLOCKS[:2], init_std=0.5, head=head))
    initialise(model, torch.Generator().manual_seed(0))
    save(model, tmp_path / "network")
    write_json(tmp_path / "network/vocab.json", list(range(256)))
    export_network(tmp_path / "network", tmp_path / "hf")
    loaded, tokens = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf"), torch.arange(9)[None] * 20
    with torch.no_grad():
        expected = model.eval().log_probs(model(tokens, **READING).hidden)
        torch.testing.assert_close(loaded(tokens).logits, expected)
