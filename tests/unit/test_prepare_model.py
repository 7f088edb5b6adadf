"""The pretrained network of an experiment, from a folder or from a configuration."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from planer.config.pretrained import NetworkKeys, PretrainedConfig
from planer.errors import UserError
from planer.pretrained.load import load_tokenizer
from planer.pretrained.prepare import load_network, prepare_model, prepared_folder, save_network

transformers = pytest.importorskip("transformers", reason="the package transformers is not installed")

from tests.unit.small_disk import small_disk  # noqa: E402
from tests.unit.tiny_pretrained import save, tiny  # noqa: E402

GPT2 = {"model_type": "gpt2", "vocab_size": 96, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
VIT = {"model_type": "vit", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
VIT |= {"num_attention_heads": 2, "image_size": 8, "patch_size": 4, "num_channels": 1}


def random_network(keys: dict, tokenizer: str = "") -> PretrainedConfig:
    return PretrainedConfig("", NetworkKeys(keys), tokenizer, "sdpa")


def test_a_users_folder_is_not_copied(tmp_path):
    save("gpt2", tmp_path / "net")
    manifest = tmp_path / "out/manifest.json"
    config = PretrainedConfig(str(tmp_path / "net"), NetworkKeys(), "", "eager")
    content = prepare_model(config, "causal_lm", manifest, seed=0)
    assert content["feed_forward_layers"] == ["transformer.h.0.mlp", "transformer.h.1.mlp"]
    assert [path.name for path in manifest.parent.iterdir()] == ["manifest.json"]
    model = load_network(manifest)
    assert model.config._attn_implementation == "eager"
    for name, weight in tiny("gpt2").state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name


def test_a_changed_folder_is_refused(tmp_path):
    save("gpt2", tmp_path / "net")
    manifest = tmp_path / "manifest.json"
    prepare_model(PretrainedConfig(str(tmp_path / "net"), NetworkKeys(), "", "sdpa"), "causal_lm", manifest, seed=0)
    file = tmp_path / "net/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"n_head": 4}))
    with pytest.raises(UserError, match="config.json is not the file that the experiment began with; put it back, or"):
        prepared_folder(manifest)


def test_random_weights_depend_on_the_seed(tmp_path):
    save("gpt2", tmp_path / "net")
    weights = []
    for seed in (1, 1, 2):
        manifest = tmp_path / "manifest.json"
        prepare_model(random_network(GPT2, str(tmp_path / "net")), "causal_lm", manifest, seed)
        weights.append(load_network(manifest).transformer.h[0].mlp.c_fc.weight)
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_classifier_reads_no_padding_of_the_tasks_batches(family, tmp_path):
    """The folder names other symbols, and two ends of a text, as Llama 3 does."""
    save(family, tmp_path / "net")
    file = tmp_path / "net/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pad_token_id": 9, "eos_token_id": [7, 8]}))
    manifest, config = tmp_path / "manifest.json", PretrainedConfig(str(tmp_path / "net"), NetworkKeys(), "", "sdpa")
    prepare_model(config, "sequence_classification", manifest, seed=0)
    model, pad = load_network(manifest, labels=("a", "b", "c")), load_tokenizer(prepared_folder(manifest)).pad_token_id
    ids = torch.tensor([[11, 12, 13, 14], [15, 9, pad, pad]])  # 9 is a word here
    logits = model(ids, attention_mask=(ids != pad).long()).logits
    torch.testing.assert_close(logits[1:], model(ids[1:, :2]).logits)
    (tmp_path / "stage").mkdir()
    save_network(model, tmp_path / "stage")
    assert load_network(manifest, tmp_path / "stage").config.pad_token_id == pad


def test_a_vision_network_gets_an_image_processor_of_its_size(tmp_path):
    prepare_model(random_network(VIT), "image_classification", tmp_path / "manifest.json", seed=1)
    processor = json.loads((tmp_path / "network/preprocessor_config.json").read_text())
    assert processor["size"] == {"height": 8, "width": 8} and processor["image_mean"] == [0.5]
    model = load_network(tmp_path / "manifest.json", labels=("a", "b", "c"))
    assert model(torch.zeros(1, 1, 8, 8)).logits.shape == (1, 3)


def test_a_stage_reads_the_network_of_the_stage_before(tmp_path):
    prepare_model(random_network(VIT), "image_classification", tmp_path / "manifest.json", seed=1)
    model = load_network(tmp_path / "manifest.json", labels=("a", "b", "c"))
    (tmp_path / "stage").mkdir()
    save_network(model, tmp_path / "stage")
    assert {path.name for path in (tmp_path / "stage").iterdir()} == {"config.json", "model.safetensors"}
    again = load_network(tmp_path / "manifest.json", tmp_path / "stage")
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(model(x).logits, again(x).logits)
    assert again.config.id2label == {0: "a", 1: "b", 2: "c"}


def flip(path: Path) -> None:
    """Change one bit of the last weight."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "damage", "problem"),
    [
        ("model.safetensors", flip, "was changed after it was written: its checksum does not fit"),
        (
            "model.safetensors",
            lambda path: path.write_bytes(path.read_bytes()[:-9]),
            "was changed after it was written",
        ),
        ("model.safetensors", lambda path: tiny("vit").save_pretrained(path.parent), "has no checksum"),
        ("model.safetensors", Path.unlink, "does not exist"),
        (
            "config.json",
            lambda path: path.write_text(path.read_text().replace('"b"', '"d"')),
            "was changed after it was",
        ),
        ("config.json", Path.unlink, "does not exist"),
    ],
)
def test_a_damaged_file_of_a_stage_is_refused_with_its_remedy(name, damage, problem, tmp_path):
    manifest, stage = tmp_path / "manifest.json", tmp_path / "results/mine/dense/finetune"
    prepare_model(random_network(VIT), "image_classification", manifest, seed=1)
    stage.mkdir(parents=True)
    save_network(load_network(manifest, labels=("a", "b", "c")), stage)
    damage(stage / name)
    remedy = f"; make it anew: snakemake --cores all --force results/mine/dense/finetune/{name}"
    with pytest.raises(UserError, match=f"{name} {problem}.*{remedy}$") as refused:
        load_network(manifest, stage)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (GPT2 | {"model_type": "gpt9"}, "model_type is 'gpt9'; allowed with the head causal_lm: gpt2, llama"),
        (GPT2 | {"n_layers": 2}, "unknown key 'n_layers'; GPT2Config"),
        (GPT2 | {"n_head": 3}, "describes no network"),
        (GPT2 | {"vocab_size": 50_000}, "a tokenizer of .* symbols, the network one of 50,000"),
    ],
)
def test_a_wrong_configuration_is_refused(tmp_path, keys, message):
    save("gpt2", tmp_path / "net")
    with pytest.raises(UserError, match=message) as refused:
        prepare_model(random_network(keys, str(tmp_path / "net")), "causal_lm", tmp_path / "out/manifest.json", seed=0)
    assert "\n" not in str(refused.value) and not Path(tmp_path / "out/manifest.json").exists()


def test_a_full_disk_is_one_line(tmp_path):
    save("gpt2", tmp_path / "net")
    config = random_network(GPT2, str(tmp_path / "net"))
    with pytest.raises(UserError, match="^cannot write .*/network: .*; free space"), small_disk(2_000):
        prepare_model(config, "causal_lm", tmp_path / "manifest.json", seed=0)
    (tmp_path / "stage").mkdir()
    with pytest.raises(UserError, match="^cannot write .*/stage: .*; free space"), small_disk(2_000):
        save_network(tiny("gpt2"), tmp_path / "stage")
    assert not list((tmp_path / "stage").iterdir())


def test_a_configuration_of_texts_needs_a_tokenizer(tmp_path):
    with pytest.raises(UserError, match="pretrained.tokenizer is empty"):
        prepare_model(random_network(GPT2), "causal_lm", tmp_path / "manifest.json", seed=0)
    with pytest.raises(UserError, match="holds no tokenizer and no image processor"):
        prepare_model(random_network(GPT2, str(tmp_path)), "causal_lm", tmp_path / "manifest.json", seed=0)
