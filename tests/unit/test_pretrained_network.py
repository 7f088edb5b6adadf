"""Converted decoders of transformers generate text with planer."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

import planer
from planer.__main__ import main
from planer.conversion.dynamic import dynamic_layers
from planer.errors import UserError
from planer.kernels.cpp import build

transformers = pytest.importorskip("transformers", reason="the package transformers is not installed")

from tests.unit.converted import converted  # noqa: E402
from tests.unit.tiny_pretrained import save_tokenizer, tiny  # noqa: E402

PROMPT = "the quick brown fox"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a family's converted network with dynamic-k; made on the first call."""
    root = tmp_path_factory.mktemp("networks")

    def folder(family: str) -> str:
        if not (root / family).exists():
            model = converted(family)
            planer.pretrained.select(model, "dynamic_k", 0.4, fast=False)
            model.save_pretrained(root / family)
            save_tokenizer(root / family)
        return str(root / family)

    return folder


def by_transformers(folder: str, tokens: int) -> list[int]:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    ids = transformers.AutoTokenizer.from_pretrained(folder)(PROMPT, return_tensors="pt").input_ids
    return model.generate(ids, max_new_tokens=tokens, do_sample=False, pad_token_id=0)[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_text_equals_that_of_transformers(family, saved):
    network = planer.load(saved(family))
    ids = network.encode(PROMPT)
    written = network.generate(ids, tokens=9)[len(ids) :]
    assert written == by_transformers(saved(family), 9)
    assert family == "gpt2" or len(set(written)) > 2, "the text is not one repeated token"
    assert network.generate(PROMPT, tokens=9) == PROMPT + network.surroundings.vocabulary.decode(written, ids)


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "qwen2", "qwen3"])
def test_a_long_prompt_is_read_in_segments(family, saved, monkeypatch):
    network = planer.load(saved(family))
    ids = network.encode(f"{PROMPT} jumps over the lazy dog")
    written = list(network.stream(ids, tokens=9))
    monkeypatch.setattr("planer.pretrained.network.SEGMENT", 3)
    pauses = (len(ids) - 1) // 3
    assert list(network.steps(ids, tokens=9)) == [[]] * pauses + [[token] for token in written] and pauses > 1


@pytest.mark.skipif(not build.available(), reason="there is no C++ compiler")
def test_layers_run_densely_where_the_networks_device_gains_nothing(tmp_path, monkeypatch):
    """The meta device stands for a GPU without a measured share."""
    model = converted("gpt2")
    planer.pretrained.select(model, "top_k", 1)
    model.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    assert not any(layer.dense for layer in dynamic_layers(planer.load(tmp_path).model))
    monkeypatch.setattr("planer.pretrained.network.resolve_device", lambda name: torch.device("meta"))
    assert all(layer.dense for layer in dynamic_layers(planer.load(tmp_path).model))


def test_samples_depend_on_the_seed(saved):
    network = planer.load(saved("llama"))
    one, same, other = (network.generate(PROMPT, tokens=9, temperature=2, seed=seed) for seed in (1, 1, 2))
    assert one == same != other


def test_the_text_ends_at_the_eos_token(saved):
    network = planer.load(saved("llama"))
    ids = network.encode(PROMPT)
    written = list(network.stream(ids, tokens=9))
    network.model.generation_config.eos_token_id = written[4]
    assert list(network.stream(ids, tokens=9)) == written[: written.index(written[4])]


def test_a_text_longer_than_the_positions_is_refused(saved):
    network = planer.load(saved("gpt2"))
    with pytest.raises(UserError, match=r"tokens of the prompt and 32 more exceed the network's 32 positions"):
        network.generate(PROMPT, tokens=32)


def test_the_commands_generate_and_info(saved, capsys):
    main(["generate", saved("llama"), PROMPT, "--tokens", "5", "--device", "cpu"])
    assert capsys.readouterr().out == planer.load(saved("llama")).generate(PROMPT, tokens=5) + "\n"
    main(["info", saved("llama")])
    out = capsys.readouterr().out
    assert f"parameters: {tiny('llama').num_parameters():,}, and 352 of routers\n" in out
    assert "layers:     experts of 4 neurons, routers of width 8\n" in out
    assert "runs:       dynamic_k 0.4\n" in out


@pytest.mark.parametrize(
    ("family", "command", "reason"),
    [
        ("bert", ["generate", PROMPT], "does not generate text: it holds a BertForMaskedLM; name the folder of"),
        ("llama", ["export", "out"], "is a Hugging Face folder already; --plain writes"),
        ("llama", ["generate", ""], "the prompt '' holds no token; write some text"),
    ],
)
def test_a_mistake_is_one_line(saved, family, command, reason):
    name, *rest = command
    with pytest.raises(SystemExit) as end:
        main([name, saved(family), *rest])
    assert reason in str(end.value.code) and "pretrained.folder" not in end.value.code


def test_a_refused_prompt_is_not_printed(saved, capsys):
    with pytest.raises(SystemExit, match="exceed the network's 32 positions"):
        main(["generate", saved("gpt2"), PROMPT, "--tokens", "32", "--device", "cpu"])
    assert capsys.readouterr().out == ""


def test_a_network_that_is_not_converted(saved, tmp_path, capsys):
    tiny("llama").save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    main(["info", str(tmp_path)])
    assert "runs" not in capsys.readouterr().out
    assert planer.load(tmp_path).generate(PROMPT, tokens=9) != planer.load(saved("llama")).generate(PROMPT, tokens=9)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaModel"]}))
    with pytest.raises(SystemExit, match="of the class 'LlamaModel' without a head; allowed: causal_lm"):
        main(["info", str(tmp_path)])


def test_an_encoder_without_a_head_generates_no_text(tmp_path):
    tiny("bert").base_model.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    with pytest.raises(SystemExit, match="does not generate text: it holds a BertModel; name the folder of a decoder"):
        main(["generate", str(tmp_path), PROMPT])


@pytest.mark.parametrize("prompt", [3, None, ["one", "two"]])
def test_a_prompt_is_text_or_ids(saved, prompt):
    with pytest.raises(UserError, match="is no list of token ids; give whole numbers"):
        planer.load(saved("gpt2")).generate(prompt, tokens=1)


def test_ids_of_numpy_become_integers(saved):
    network = planer.load(saved("gpt2"))
    written = network.generate(np.array([7, 8]), tokens=2)
    assert written == network.generate([7, 8], tokens=2) and all(type(token) is int for token in written)


@pytest.mark.parametrize("command", ["info", "export"])
@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda keys: keys["quantization_config"].pop("kind"), "'kind' is a required property"),
        (lambda keys: keys["quantization_config"].pop("expert_size"), "'expert_size' is a required property"),
        (lambda keys: keys["quantization_config"].update(kind="thresholds"), "is a required property"),
        (lambda keys: keys["quantization_config"].update(router_width=None), "router_width: None is not of type 'inte"),
        (lambda keys: keys["quantization_config"].update(value="x"), "value: 'x' is not of type 'number'"),
        (lambda keys: keys.update(model_type="planer-bert"), "projections: None is not of type 'object'"),
        (lambda keys: keys.update(model_type="planer-bert", projections={"replace": 3}), "config.json is not as"),
    ],
)
def test_a_damaged_description_is_one_line(saved, tmp_path, command, damage, problem):
    folder = shutil.copytree(saved("bert"), tmp_path / "net")
    keys = json.loads((folder / "config.json").read_text())
    damage(keys)
    (folder / "config.json").write_text(json.dumps(keys))
    arguments = [str(tmp_path / "out"), "--plain"] if command == "export" else []
    with pytest.raises(SystemExit) as end:
        main([command, str(folder), *arguments])
    line = str(end.value.code)
    assert problem in line and line.endswith("; copy the whole folder again") and "\n" not in line
    assert not (tmp_path / "out").exists()
