"""The Hugging Face folder of an arm, and the plain network made from it."""

from __future__ import annotations

import json
import socket

import pytest
import torch
from safetensors.torch import load_file

import planer
from planer.__main__ import main
from planer.errors import UserError

transformers = pytest.importorskip("transformers", reason="the package transformers is not installed")

from planer.conversion.dynamic import make_dynamic  # noqa: E402
from planer.conversion.hub import mark  # noqa: E402
from planer.conversion.stored import describe_experts  # noqa: E402
from planer.pretrained.adapters import adapter_for  # noqa: E402
from planer.pretrained.describe import figures  # noqa: E402
from planer.pretrained.folder import check_folder, head_of  # noqa: E402
from planer.pretrained.load import load_image_processor, load_model, load_tokenizer  # noqa: E402
from planer.pretrained.save import write_folder  # noqa: E402
from tests.unit.converted import converted, run_card, thresholded  # noqa: E402
from tests.unit.made_up_arms import arm  # noqa: E402
from tests.unit.small_disk import small_disk  # noqa: E402
from tests.unit.tiny_pretrained import inputs, logits, save, tiny  # noqa: E402

ARM = arm("d2dmoe", "experts", "dynamic_k", 0.015)


def write_arm(family: str, home, evaluation=None, make=converted, setting=("dynamic_k", 0.4)):
    """Write the folder of a network converted from a folder with a licence."""
    save(family, home / "source")
    (home / "source/README.md").write_text("---\nlicense: mit\ntags: [old]\n---\n# The source\n")
    (home / "source/LICENSE").write_text("The licence.")
    model = make(family)
    planer.pretrained.select(model, *setting, fast=False)
    write_folder(model, check_folder(home / "source", head_of(home / "source")), home / "hf", evaluation)
    return home / "hf"


@pytest.mark.parametrize("family", ["bert", "gpt2", "vit", "llama"])
def test_the_folder_of_an_arm_is_complete(family, tmp_path, monkeypatch):
    """Sockets do not work, so that nothing can be downloaded."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for name in ("connect", "bind"):
        monkeypatch.setattr(socket.socket, name, None)
    folder = write_arm(family, tmp_path)
    checked = check_folder(folder, head_of(folder), converted=True)
    model = converted(family)
    planer.pretrained.select(model, "dynamic_k", 0.4, fast=False)
    assert torch.equal(logits(load_model(checked), inputs(family)), logits(model, inputs(family)))
    assert (load_image_processor if family == "vit" else load_tokenizer)(checked)
    assert (folder / "LICENSE").read_text() == "The licence."
    assert not [file for file in folder.iterdir() if file.is_dir() or file.name.startswith(".")]


def test_the_code_of_the_model_card_runs(tmp_path):
    run_card(write_arm("gpt2", tmp_path))


@pytest.mark.parametrize("family", ["vit", "llama"])
def test_the_plain_network_is_the_original_one(family, tmp_path, capsys):
    folder, plain = write_arm(family, tmp_path), tmp_path / "plain"
    main(["export", str(folder), str(plain), "--plain"])
    assert capsys.readouterr().out == f"wrote {plain}\n"
    assert "quantization_config" not in json.loads((plain / "config.json").read_text())
    own, source = (load_file(path / "model.safetensors") for path in (plain, tmp_path / "source"))
    assert own.keys() == source.keys() and all(torch.equal(own[name], source[name]) for name in own)
    model = load_model(check_folder(plain, head_of(plain)))
    assert torch.equal(logits(model, inputs(family)), logits(tiny(family), inputs(family)))
    assert {file.name for file in plain.iterdir()} == {file.name for file in folder.iterdir()} - {"README.md"}
    for again, reason in ((plain, "exists and is not an empty folder"), (tmp_path / "new", "a plain network already")):
        with pytest.raises(SystemExit, match=reason):
            main(["export", str(folder if again is plain else plain), str(again), "--plain"])


def test_a_full_disk_leaves_nothing_of_a_plain_network(tmp_path):
    folder, plain = write_arm("vit", tmp_path), tmp_path / "plain"
    with pytest.raises(SystemExit, match="cannot write .*/model.safetensors: File too large"), small_disk(2_000):
        main(["export", str(folder), str(plain), "--plain"])
    assert not plain.exists()


def test_a_full_disk_leaves_nothing_of_a_folder(tmp_path):
    save("gpt2", tmp_path / "source")
    source = check_folder(tmp_path / "source", "causal_lm")
    with pytest.raises(UserError, match="^cannot write .*/hf: .*; free space"), small_disk(2_000):
        write_folder(converted("gpt2"), source, tmp_path / "hf")
    assert not list((tmp_path / "hf").iterdir())


def test_relu_is_in_the_configuration(tmp_path):
    """transformers then computes the same with planer and without."""
    save("gpt2", tmp_path / "source")
    model = tiny("gpt2")
    adapter_for(model).use_relu(model)
    expected = logits(model, inputs("gpt2"))
    assert (expected - logits(tiny("gpt2"), inputs("gpt2"))).abs().max() > 1e-3
    make_dynamic(model, 4, 8)
    mark(model, describe_experts(model))
    write_folder(model, check_folder(tmp_path / "source", "causal_lm"), tmp_path / "hf")
    main(["export", str(tmp_path / "hf"), str(tmp_path / "plain"), "--plain"])
    for folder in (tmp_path / "hf", tmp_path / "plain"):
        assert torch.equal(
            logits(load_model(check_folder(folder, "causal_lm", converted=True)), inputs("gpt2")), expected
        )


def test_a_network_in_several_files_becomes_plain(tmp_path):
    folder, plain = write_arm("llama", tmp_path), tmp_path / "plain"
    model = load_model(check_folder(folder, "causal_lm", converted=True))
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="8KB")
    main(["export", str(folder), str(plain), "--plain"])
    model = load_model(check_folder(plain, "causal_lm"))
    assert torch.equal(logits(model, inputs("llama")), logits(tiny("llama"), inputs("llama")))


def test_the_model_card_has_the_measurements_and_how_to_load(tmp_path, capsys):
    folder = write_arm("bert", tmp_path, ARM)
    card = (folder / "README.md").read_text()
    front = (
        "library_name: transformers\npipeline_tag: fill-mask\ntags: [planer, conditional-computation]\nlicense: mit\n"
    )
    assert card.startswith(f"---\n{front}---\n")
    assert "# toy/d2dmoe\n" in card and "AutoModelForMaskedLM.from_pretrained" in card and str(tmp_path) not in card
    row = next(row for row in ARM["rows"] if row["selector"] == "dynamic_k" and row["value"] == 0.3)
    line = f"| dynamic_k 0.3 | {row['test']['accuracy']:.4g} | 45.0% | {row['network_ratio']:.1%} |"
    assert line in card and card.count("\n| dynamic_k ") == 5, "no bounds"
    main(["info", str(folder)])
    out = capsys.readouterr().out
    assert "variant:    toy/d2dmoe\n" in out and "runs:       dynamic_k 0.4\n" in out
    assert "test:       accuracy 0.918, of dense_continued 0.92\n" in out
    assert f"chosen:     dynamic_k {ARM['chosen']['value']:g}, test accuracy " in out
    assert out.count("(forward, batch ") == 2


def test_info_writes_nothing_before_a_damaged_evaluation(tmp_path, capsys):
    folder = write_arm("gpt2", tmp_path, ARM)
    (folder / "eval.json").write_text("{}")
    with pytest.raises(SystemExit, match="eval.json is not as arm.schema.json describes it"):
        main(["info", str(folder)])
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("ends", "interval"),
    [((None, None), "too few rounds for an interval"), ((0.9, 1.204), "95% interval 0.90 to 1.20")],
)
def test_a_speed_up_has_an_interval(ends, interval):
    entry = next(entry for entry in ARM["latency"] if ARM["chosen"].items() <= entry.items())
    entry = entry | {"speed_up": 1.1, "low": ends[0], "high": ends[1]}
    speed = dict(figures(ARM | {"latency": [entry]}))["speed"]
    assert speed.startswith(f"1.10 times the dense network's, {interval} (")


def test_thresholds_are_described(tmp_path, capsys):
    evaluation = arm("threshold", "threshold", "product", 0.3)
    folder = write_arm("gpt2", tmp_path, evaluation, thresholded, ("product", 0.25))
    main(["info", str(folder)])
    out = capsys.readouterr().out
    assert "layers:     thresholds on neurons by product, for shares 0.25, 0.5\nruns:       product 0.25\n" in out
    card = (folder / "README.md").read_text()
    assert card.count("\n| product 0.") == 4 and "| all, nothing is left out | " in card


def test_the_folder_of_the_dense_arm_does_not_need_planer(tmp_path, capsys):
    save("vit", tmp_path / "source")
    write_folder(
        tiny("vit"), check_folder(tmp_path / "source", "image_classification"), tmp_path / "hf", arm("dense", "dense")
    )
    card = (tmp_path / "hf/README.md").read_text()
    assert "tags: [planer]\nlicense: other\n" in card and "import planer" not in card and "Settings" not in card
    main(["info", str(tmp_path / "hf")])
    out = capsys.readouterr().out
    assert "test:       accuracy 0.92, of dense 0.92\n" in out and "chosen" not in out and "runs" not in out


def test_an_experiment_does_not_start_from_a_converted_network(tmp_path):
    folder = write_arm("bert", tmp_path)
    with pytest.raises(planer.errors.UserError, match="is converted already; write the plain one: python -m planer"):
        check_folder(folder, "masked_lm")


def test_the_same_network_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    one, two = (write_arm("gpt2", tmp_path / name, ARM) for name in ("a", "b"))
    names = {file.name for file in one.iterdir()}
    assert names >= {"config.json", "model.safetensors", "README.md", "eval.json", "tokenizer.json"}
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in names)
