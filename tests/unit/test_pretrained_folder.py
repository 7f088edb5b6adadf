"""Hugging Face folders are loaded without a network connection, and damaged ones are refused in one line."""

from __future__ import annotations

import json
import shutil
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from planer.config.pretrained import PretrainedConfig
from planer.conversion.recording import Recorder
from planer.errors import UserError
from planer.pretrained.folder import check_folder, network_files
from planer.pretrained.load import load_image_processor, load_model, load_tokenizer

transformers = pytest.importorskip("transformers", reason="the package transformers is not installed")

from tests.unit.tiny_pretrained import FAMILIES, NEURONS, VOCAB, WIDTH, inputs, logits, save, tiny  # noqa: E402
from tests.unit.toy import ROOT  # noqa: E402

HEAD = {"bert": "masked_lm", "vit": "image_classification"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a family; made on the first call."""
    root = tmp_path_factory.mktemp("saved")

    def folder(family: str) -> Path:
        if not (root / family).exists():
            save(family, root / family)
        return root / family

    return folder


@pytest.fixture
def copied(saved, tmp_path):
    def folder(family: str) -> Path:
        return Path(shutil.copytree(saved(family), tmp_path / family))

    return folder


@pytest.fixture
def no_network(monkeypatch):
    """Sockets do not work, without HF_HUB_OFFLINE; the test fails if one is used."""
    tried = []

    def refuse(*arguments, **options):
        tried.append(arguments)
        raise OSError("no network")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    yield
    assert not tried


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_network_is_loaded_without_a_connection(family, saved, no_network):
    folder = check_folder(saved(family), HEAD.get(family, "causal_lm"))
    assert folder.adapter.sizes(folder.config) == (WIDTH, NEURONS)
    model = load_model(folder)
    assert torch.equal(logits(model, inputs(family)), logits(tiny(family), inputs(family))) and not model.training
    if family == "vit":
        assert load_image_processor(folder).size == {"height": 8, "width": 8}
    else:
        assert 5 < len(load_tokenizer(folder)) <= VOCAB


def test_tied_weights_stay_tied_and_half_precision_becomes_single(copied):
    folder = copied("gpt2")
    tiny("gpt2").to(torch.bfloat16).save_pretrained(folder)
    model = load_model(check_folder(folder, "causal_lm"))
    assert model.lm_head.weight is model.transformer.wte.weight
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_feed_forward_layers_of_a_loaded_network_compute_all_tokens_at_once(copied):
    folder = copied("bert")
    edit(folder, chunk_size_feed_forward=3)
    model = load_model(check_folder(folder, "masked_lm"))
    with Recorder(model).recording() as recorder:
        found = logits(model, inputs("bert"))
        assert {seen.x.shape[:2] for _, seen in recorder.take()} == {inputs("bert").shape}
    torch.testing.assert_close(found, logits(tiny("bert"), inputs("bert")))
    assert model.config.chunk_size_feed_forward == 3


@pytest.mark.parametrize("family", ["gpt2", "bert", "llama"])
def test_a_classification_gets_a_new_head_and_keeps_all_other_weights(family, saved):
    folder = check_folder(saved(family), "sequence_classification")
    model = load_model(folder, labels=("bad", "fair", "good"))
    assert model.config.id2label == {0: "bad", 1: "fair", 2: "good"} and model.config.label2id["good"] == 2
    with torch.no_grad():
        got = model.base_model(inputs(family)).last_hidden_state
        assert torch.equal(got, tiny(family).base_model(inputs(family)).last_hidden_state)


def test_a_head_of_other_labels_is_replaced(saved):
    folder = check_folder(saved("vit"), "image_classification")
    model = load_model(folder, labels=("a", "b", "c", "d", "e"))
    assert model.classifier.weight.shape[0] == 5
    assert torch.equal(model.vit.layernorm.weight, tiny("vit").vit.layernorm.weight)


@pytest.mark.parametrize(
    ("family", "new"), [("bert", "bert.pooler.dense.bias and 3 others"), ("vit", "classifier.bias and 1 others")]
)
def test_without_training_a_new_head_is_refused(family, new, saved):
    folder = check_folder(saved(family), "image_classification" if family == "vit" else "sequence_classification")
    with pytest.raises(
        UserError, match=rf"lacks a head for the task's labels \({new}\), and with 0 steps none is trained; set"
    ):
        load_model(folder, labels=("a", "b", "c", "d"), new_head=False)


def test_without_training_a_head_of_as_many_labels_is_kept(saved):
    folder = check_folder(saved("vit"), "image_classification")
    model = load_model(folder, labels=("a", "b", "c"), new_head=False)
    assert torch.equal(model.classifier.weight, tiny("vit").classifier.weight)


def test_older_folders_of_gpt2_with_constants_of_attention_are_loaded(copied):
    folder = copied("gpt2")
    constants = {f"transformer.h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(2)}
    constants |= {f"transformer.h.{i}.attn.bias": torch.ones(1, 1, 32, 32) for i in range(2)}
    rewrite(folder, lambda w: w.update(constants))
    model = load_model(check_folder(folder, "causal_lm"))
    assert torch.equal(logits(model, inputs("gpt2")), logits(tiny("gpt2"), inputs("gpt2")))


def test_a_network_in_several_files_is_loaded(saved, copied):
    folder = copied("llama")
    (folder / "model.safetensors").unlink()
    tiny("llama").save_pretrained(folder, max_shard_size="8KB")
    assert len(check_folder(folder, "causal_lm").weights) > 1
    model = load_model(check_folder(folder, "causal_lm"))
    assert torch.equal(logits(model, inputs("llama")), logits(tiny("llama"), inputs("llama")))
    min(folder.glob("model-*.safetensors")).unlink()
    with pytest.raises(UserError, match="lacks model-00001-of-.* that model.safetensors.index.json names; copy"):
        check_folder(folder, "causal_lm")


def test_all_files_that_a_network_is_made_from_are_inputs(tmp_path):
    """Of a folder its tokenizer too, of a network with random weights only a tokenizer."""
    processor = {"tokenizer.json", "preprocessor_config.json"}
    shards = {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}
    network = {"config.json", "generation_config.json", "model.safetensors", "model.safetensors.index.json"} | shards
    for name in (*processor, *network, "README.md", "pytorch_model.bin"):
        (tmp_path / name).touch()

    def names(folder: str = "", tokenizer: str = "") -> set[str]:
        config = {} if folder else {"model_type": "gpt2"}
        return {path.name for path in network_files(PretrainedConfig(folder, config, tokenizer, "sdpa"))}

    assert names(folder=str(tmp_path)) == processor | network
    assert names(tokenizer=str(tmp_path)) == processor
    assert not names() and not names(folder=str(tmp_path / "missing")) and not names(folder="a" * 300)


def edit(folder: Path, **changes) -> None:
    """Change keys of config.json; None removes one."""
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def swap_for_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


DAMAGE = {
    "no folder": (lambda f: shutil.rmtree(f), "is no folder; name one that save_pretrained wrote"),
    "no configuration": (lambda f: (f / "config.json").unlink(), "has no config.json; name the folder"),
    "no JSON": (lambda f: cut(f / "config.json"), "config.json is no readable JSON"),
    "a list": (lambda f: (f / "config.json").write_text("[]"), "config.json holds no keys and values"),
    "a type unknown": (
        lambda f: edit(f, model_type="gpt_neo", architectures=["GPTNeoForCausalLM"]),
        "is a network GPTNeoForCausalLM of the unknown model_type 'gpt_neo'; allowed: bert, gpt2, llama, mis",
    ),
    "no type": (lambda f: edit(f, model_type=None, architectures=None), "is a network of the unknown model_type empty"),
    "code": (lambda f: edit(f, auto_map={"AutoModel": "a.B"}), r"needs Python code of its own \(auto_map\)"),
    "quantized": (lambda f: edit(f, quantization_config={"quant_method": "gptq"}), "holds quantized weights; deq"),
    "a pickle": (swap_for_pickle, "has weights as pytorch_model.bin only, a pickle, which is never read; save"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "has no model.safetensors; copy the whole folder"),
    "cut weights": (lambda f: cut(f / "model.safetensors"), r"model.safetensors is damaged \(.*\); copy it again"),
    "a wrong header": (
        lambda f: (f / "model.safetensors").write_bytes(struct.pack("<Q", 2**60)),
        "model.safetensors is damaged",
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "lacks tokenizer.json, or vocab.txt, or vocab.json"),
}


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
def test_impossible_names_of_folders_are_refused(name):
    with pytest.raises(UserError, match="is no folder; name one that save_pretrained wrote") as error:
        check_folder(name, "causal_lm")
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_folder_is_refused_in_one_line(damage, copied):
    folder = copied("gpt2")
    change, message = DAMAGE[damage]
    change(folder)
    with pytest.raises(UserError, match=f"^pretrained.folder: {folder}.*{message}") as refused:
        check_folder(folder, "causal_lm")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("family", "head", "allowed"),
    [
        ("vit", "causal_lm", "image_classification"),
        ("bert", "causal_lm", "masked_lm, "),
        ("gpt2", "speech", "causal_lm"),
    ],
)
def test_a_head_that_the_family_lacks_is_refused(family, head, allowed, saved):
    with pytest.raises(UserError, match=f"has no head '{head}'; allowed for {family}: {allowed}"):
        check_folder(saved(family), head)


def test_an_image_network_needs_its_image_processor(copied):
    folder = copied("vit")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match="lacks preprocessor_config.json; .*image_processor.save_pretrained"):
        check_folder(folder, "image_classification")


def rewrite(folder: Path, change) -> None:
    """Save the weights again after change(weights)."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


WRONG = {
    "missing": (
        lambda w: w.pop("transformer.h.1.mlp.c_fc.weight"),
        "lacks the weights transformer.h.1.mlp.c_fc.weight",
    ),
    "of another size": (
        lambda w: w.update({"transformer.h.0.mlp.c_fc.bias": torch.zeros(7)}),
        "has weights transformer.h.0.mlp.c_fc.bias of another size than config.json says",
    ),
    "of a third layer": (
        lambda w: w.update({"transformer.h.2.mlp.c_fc.bias": torch.zeros(24)}),
        "has weights transformer.h.2.mlp.c_fc.bias that config.json has no place for",
    ),
    "of no layer": (
        lambda w: w.update({"transformer.h.0.attn.in_proj_weight": torch.zeros(24)}),
        "has weights transformer.h.0.attn.in_proj_weight that config.json has no place for",
    ),
    "no numbers": (
        lambda w: w["transformer.wte.weight"].fill_(torch.nan),
        "has values in transformer.wte.weight that are not finite",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_weights_that_do_not_fit_are_refused_in_one_line(wrong, copied):
    folder = copied("gpt2")
    change, message = WRONG[wrong]
    rewrite(folder, change)
    with pytest.raises(UserError, match=message) as refused:
        load_model(check_folder(folder, "causal_lm"))
    assert "\n" not in str(refused.value)


def test_a_value_that_transformers_refuses_is_one_line(copied):
    folder = copied("gpt2")
    edit(folder, n_head=7)
    with pytest.raises(UserError, match="cannot be loaded by AutoModelForCausalLM") as refused:
        load_model(check_folder(folder, "causal_lm"))
    assert "\n" not in str(refused.value)


def test_missing_weights_below_a_new_head_are_refused(copied):
    folder = copied("bert")
    rewrite(folder, lambda w: w.pop("bert.encoder.layer.0.output.dense.weight"))
    with pytest.raises(UserError, match="lacks the weights bert.encoder.layer.0.output.dense.weight"):
        load_model(check_folder(folder, "sequence_classification"), labels=("no", "yes"))


def test_a_tokenizer_of_another_network_is_refused(copied):
    folder = copied("bert")
    edit(folder, vocab_size=4000)
    with pytest.raises(UserError, match=r"has a tokenizer of \d+ symbols, the network one of 4,000; copy the"):
        load_tokenizer(check_folder(folder, "masked_lm"))


def test_a_tokenizer_without_known_words_is_refused(copied):
    folder = copied("bert")
    document = json.loads((folder / "tokenizer.json").read_text())
    document["model"] |= {"vocab": {"[UNK]": 0, "[PAD]": 1}, "merges": []}
    document["added_tokens"] = []
    (folder / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match="has a tokenizer to which all English text is unknown"):
        load_tokenizer(check_folder(folder, "masked_lm"))


def test_a_damaged_tokenizer_is_refused_in_one_line(copied):
    folder = copied("gpt2")
    cut(folder / "tokenizer.json")
    with pytest.raises(UserError, match="cannot be loaded by AutoTokenizer") as refused:
        load_tokenizer(check_folder(folder, "causal_lm"))
    assert "\n" not in str(refused.value)


def test_check_folder_imports_neither_torch_nor_transformers(saved):
    program = (
        "import sys; from planer.pretrained.folder import check_folder; "
        f"check_folder({str(saved('gpt2'))!r}, 'causal_lm'); print({{'torch', 'transformers'}} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"
