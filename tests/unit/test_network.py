"""Trained networks in their folders: loading, describing, exporting, and the command line."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from small_disk import small_disk
from toy import ROOT

import planer
from planer.__main__ import main
from planer.errors import UserError
from planer.files import write_json
from planer.kernels.cpp import build
from planer.models import LanguageModel, initialise, save
from planer.models.network import MEM_LEN
from planer.specs import Architecture, Attention, FeedForward
from tests.command_line import refused_line

ARCHITECTURE = Architecture(256, 16, (Attention(2, 8), FeedForward(32), Attention(1, 8)), init_std=0.3)
MANIFEST = {"dataset": "my-text", "tokens": dict.fromkeys(("train", "valid", "test"), 9), "vocab_size": 256}
MANIFEST |= {"files_sha256": {f"{split}.npy": "0" * 64 for split in ("train", "valid", "test")}}
EVALUATION = {
    "experiment": "mine",
    "variant": "target_0.5",
    "quality": {
        "unit": "bpc",
        "final": {"mem_len": 7, "clamp_len": 5, "valid": {"bpc": 2.5}, "test": {"bpc": 2.25}},
    },
    "latency": [{"execution": "eager"}, {"execution": "decode", "batch": 1, "tokens_per_second": 1234.5}],
    "summary": {
        "dense": {"speed_up": 2.0, "nll_ratio": 1.01},
        "converted": {"tau": 0.1, "speed_up": 2.5, "nll_ratio": None},
    },
    "dynamic_k": [{"tau": 0.1, "test": {"bpc": 2.375}}],
    "provenance": {"device": "Toy Device 3000"},
}
"""The parts of an eval.json that are used."""


def random_network(folder, architecture=ARCHITECTURE) -> None:
    model = LanguageModel(architecture)
    initialise(model, torch.Generator().manual_seed(0))
    save(model, folder)


def prepared(folder, symbols) -> None:
    write_json(folder / "vocab.json", symbols)
    write_json(folder / "manifest.json", MANIFEST | {"vocab_size": len(symbols)})


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A working directory with a trained network and a prepared text."""
    monkeypatch.chdir(tmp_path)
    random_network(tmp_path / "results/mine/target_0.5/retrain")
    prepared(tmp_path / "results/data/mine-text", list(range(256)))
    return tmp_path / "results"


@pytest.fixture
def evaluated(results, monkeypatch):
    """The same with an eval.json, without the other values that its schema requires."""
    monkeypatch.setattr("planer.files.check_shape", lambda *_: None)
    write_json(results / "mine/target_0.5/eval.json", EVALUATION)
    return results


FOLDER = "results/mine/target_0.5/retrain"


def test_importing_planer_loads_no_torch():
    code = "import sys, planer, planer.__main__ as m; m.parser(); assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)


def test_a_text_gives_a_text_and_ids_give_ids(results):
    network = planer.load(FOLDER)
    text = network.generate("the ", tokens=12, temperature=1.0, seed=3)
    ids = network.generate(list(b"the "), tokens=12, temperature=1.0, seed=3)
    assert len(ids) == 16 and text == bytes(ids).decode(errors="replace") and text.startswith("the ")
    assert not network.training and (network.surroundings.mem_len, network.surroundings.clamp_len) == (MEM_LEN, 0)


@pytest.mark.parametrize("options", [{}, {"weights": "bfloat16"}])
def test_a_list_of_prompts_gives_the_texts_of_each_prompt(results, options):
    if options and not build.available():
        pytest.skip("needs a C++ compiler")
    network, prompts = planer.load(FOLDER), ["the ", "a", [1, 2, 3]]
    options |= {"tokens": 9, "temperature": 1.0}
    assert network.generate(prompts, **options) == [network.generate(prompt, **options) for prompt in prompts]


def test_memory_and_clamp_length_are_those_of_the_evaluation(evaluated):
    network = planer.load(FOLDER)
    assert (network.surroundings.mem_len, network.surroundings.clamp_len) == (7, 5)


def test_an_ambiguous_vocabulary_must_be_named(results, capsys):
    """Vocabularies of other sizes do not fit, and equal ones count once."""
    prepared(results / "data/letters", list(b"abc"))
    prepared(results / "data/same", list(range(256)))
    assert planer.load(FOLDER).surroundings.vocabulary.kind == "bytes"
    prepared(results / "data/words", ["<eos>", "<unk>", *map(str, range(254))])
    line = refused_line(capsys, "generate", FOLDER, "1 2")
    assert "may have been trained on several texts; name the vocab.json of one: " in line
    main(["generate", FOLDER, "1 2", "--vocab", "results/data/words/vocab.json", "--tokens", "3", "--device", "cpu"])
    network = planer.load(FOLDER, vocab="results/data/words/vocab.json")
    text = network.generate("1 2", tokens=3)
    assert capsys.readouterr().out == f"{text}\n" and len(text.split()) == 5 and text.startswith("1 2 ")


def test_data_without_a_vocabulary_are_ignored(results):
    """Such as a task of a pretrained experiment, which has another manifest."""
    (results / "data/news-task").mkdir(parents=True)
    (results / "data/news-task/manifest.json").write_text("{}")
    assert planer.load(FOLDER).surroundings.vocabulary.kind == "bytes"


def test_without_a_vocabulary_only_ids_work(tmp_path):
    random_network(tmp_path / "net")
    network = planer.load(tmp_path / "net")
    assert len(network.generate([1, 2], tokens=3)) == 5
    with pytest.raises(UserError, match="no vocab.json belongs to this network"):
        network.generate("the ")


def test_generate_prints_the_text_of_the_python_call(results, capsys):
    main(["generate", FOLDER, "the ", "--tokens=9", "--temperature=0.9", "--top-k=40", "--seed=4", "--device=cpu"])
    expected = planer.load(FOLDER).generate("the ", tokens=9, temperature=0.9, top_k=40, seed=4)
    assert capsys.readouterr().out == f"{expected}\n"


def test_info_of_an_evaluated_network(evaluated, capsys):
    main(["info", FOLDER])
    out = capsys.readouterr().out
    lines = [
        "blocks:     sfs1 (3)",
        f"parameters: {ARCHITECTURE.params():,}, of which one token uses {ARCHITECTURE.params():,}",
        "memory:     7 tokens",
        "test:       2.25 bpc (dense, mem_len 7)",
        "speed:      2.00 times the baseline's at 101.0% of its test nll, on Toy Device 3000",
        "decoding:   1,234 tokens per second, batch 1, on Toy Device 3000",
        "converted:  test 2.375 bpc at tau 0.1",
    ]
    assert all(f"{line}\n" in out for line in lines), out
    assert "tokens:     256 bytes, " in out


def test_info_of_a_network_that_was_not_evaluated(results, capsys):
    main(["info", FOLDER])
    out = capsys.readouterr().out
    assert "memory:     512 tokens (no eval.json says otherwise)" in out and "speed" not in out


def test_an_exported_network_can_be_moved_and_writes_the_same_text(evaluated, tmp_path, capsys, monkeypatch):
    text = planer.load(FOLDER).generate("the ", tokens=9)
    main(["export", FOLDER, "out/hf"])
    assert capsys.readouterr().out == "wrote out/hf; its README.md says how to load it\n"
    os.rename("out/hf", tmp_path / "moved")
    monkeypatch.chdir("/")
    moved = planer.load(tmp_path / "moved")
    assert moved.generate("the ", tokens=9) == text and moved.surroundings.mem_len == 7
    card = (tmp_path / "moved/README.md").read_text()
    assert "| test | 2.25 bpc (dense, mem_len 7) |" in card and str(tmp_path) not in card
    assert "# mine/target_0.5\n" in card and 'AutoModelForCausalLM.from_pretrained("PATH")' in card


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["generate", "nowhere", "the"], "'nowhere' is no folder; name the folder of a trained network"),
        (["info", "results"], "'results' has no architecture.yaml; name the folder of a trained network"),
        (["generate", FOLDER, ""], "the prompt '' holds no token; write some text"),
        (["generate", FOLDER, "x", "--tokens", "0"], "tokens is 0; it must be from 1 to 1,000,000"),
        (["generate", FOLDER, "x", "--tokens", "many"], "argument --tokens: invalid int value: 'many'"),
        (["generate", FOLDER, "x", "--temperature", "-1"], "temperature is -1.0; it must be from 0 to 1,000"),
        (["generate", FOLDER, "x", "--top-k", "-1"], "top_k is -1; it must be from 0"),
        (["generate", FOLDER, "x", "--weights", "int4"], "argument --weights: invalid choice: 'int4'"),
        (["generate", FOLDER, "x", "--device", "tpu"], "device: 'tpu' is unknown; allowed: auto, cpu, cuda"),
        (["info", "x" * 5000], "is no folder; name the folder of a trained network"),
        (["info", FOLDER, "--vocab", "no.json"], "no.json does not exist"),
        (["export", FOLDER, "results"], "'results' exists and is not an empty folder"),
        (["export", FOLDER, FOLDER + "/model.safetensors"], "exists and is not an empty folder"),
        (["export", FOLDER, "x" * 5000], "File name too long"),
        (["export", FOLDER], "the following arguments are required: OUT"),
        (["exprot", FOLDER], "invalid choice: 'exprot'"),
    ],
)
def test_a_mistake_is_one_line(results, capsys, arguments, reason):
    assert reason in refused_line(capsys, *arguments)


def test_a_vocabulary_of_another_size_is_refused(results, capsys):
    prepared(results / "data/letters", list(b"abc"))
    line = refused_line(capsys, "generate", FOLDER, "abc", "--vocab", "results/data/letters/vocab.json")
    assert "letters/vocab.json has 3 symbols, the network in " in line and "has 256; name the vocab.json" in line


def test_an_export_to_a_full_disk_leaves_no_files(results, capsys):
    (results / "empty").mkdir()
    for out in ("out", "results/empty"):
        with small_disk(10_000):
            assert f"cannot write {out}/model.safetensors: File too large" in refused_line(
                capsys, "export", FOLDER, out
            )
    assert not os.path.exists("out") and not any((results / "empty").iterdir())


def test_a_failed_or_lossy_standard_output(results):
    """A full disk is one line; an encoding without the characters gets question marks."""
    command = [sys.executable, "-m", "planer", "generate", FOLDER, "é", "--tokens=2", "--device=cpu"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    with open("/dev/full", "w") as full:
        refused = subprocess.run(command, env=environment, stdout=full, stderr=subprocess.PIPE, text=True)
    assert refused.returncode and refused.stderr == "planer: standard output: No space left on device\n"
    written = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert not written.returncode and written.stdout.startswith("?") and not written.stderr


def test_a_failed_export_leaves_no_files(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    random_network(tmp_path / "net")
    assert "no vocab.json belongs to 'net'; name that of its text with --vocab" in refused_line(
        capsys, "export", "net", "out"
    )
    assert not os.path.exists("out")
