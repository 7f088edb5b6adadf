"""A user's own blocks, in the folder PLANER_BLOCKS."""

from __future__ import annotations

import sys

import pytest
import torch

import planer.blocks
import planer.specs
from planer.config import ModelConfig
from planer.errors import UserError
from planer.heads import Softmax
from planer.models import LanguageModel, initialise
from planer.specs import Architecture, kinds
from planer.specs.plugins import plugin_folders
from planer.workflow.source import Sources
from tests.own_block import MODULE, SPECIFICATION, write_block
from tests.unit.toy import ROOT

BACKBONE = ModelConfig(
    d_model=8,
    num_heads=2,
    d_inner=16,
    num_experts=4,
    norm="post",
    dropout=0.0,
    moe_dropout=0.0,
    attention_dropout=0.0,
    init_std=0.02,
    head=Softmax(),
)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """An empty folder for own blocks, as if PLANER_BLOCKS was set before the process started."""
    folder = tmp_path / "own"
    monkeypatch.setenv("PLANER_BLOCKS", str(folder))
    for package in (planer.specs, planer.blocks):
        path = plugin_folders(package.__name__.rpartition(".")[2])
        monkeypatch.setattr(package, "__path__", [*package.__path__, *path])
    kinds.cache_clear()
    yield folder
    kinds.cache_clear()
    for name in ("specs.gate", "specs.gates", "blocks.gate"):
        sys.modules.pop(f"planer.{name}", None)


def test_an_own_block_in_options_patterns_and_networks(own):
    write_block(own)
    spec = BACKBONE.option("gate")
    order = ["skip", "attention", "feed_forward", "gate", "moe", "dynamic_moe"]
    assert [kind for kind in kinds() if kind in order] == order
    network = BACKBONE.architecture(11, "sgg")
    assert network.blocks[1] == spec and network.pattern == "s(g)x2"
    assert Architecture.from_dict(network.to_dict()) == network
    model = LanguageModel(network)
    initialise(model, torch.Generator().manual_seed(0))
    assert sum(parameter.numel() for parameter in model.parameters()) == network.params()
    hidden = model(torch.zeros(2, 3, dtype=torch.int64), mem_len=0).hidden
    assert hidden.shape == (2, 3, 8)
    with pytest.raises(UserError, match="allowed: skip, attention_<heads>, .*, gate, moe_top<k>"):
        BACKBONE.option("gates")


def test_stages_that_build_blocks_depend_on_its_files(own):
    write_block(own)
    reached = Sources(ROOT).reached(ROOT / "workflow/scripts/retrain.py")
    assert {own / "specs/gate.py", own / "blocks/gate.py"} <= reached
    assert own / "blocks/gate.py" not in Sources(ROOT).reached(ROOT / "workflow/scripts/pattern.py")


@pytest.mark.parametrize("text", [b"def (", b"# caf\xe9", b"x = 1\0"])
def test_a_file_that_is_no_python_is_named(own, text):
    write_block(own)
    (own / "blocks/gate.py").write_bytes(text)
    with pytest.raises(UserError, match="blocks/gate.py is no Python module: .+"):
        Sources(ROOT).reached(ROOT / "workflow/scripts/retrain.py")


@pytest.mark.parametrize(
    ("specification", "name", "message"),
    [
        ("import nothing_of_this_name", "gate", "specs/gate.py cannot be imported: No module named"),
        ("import sys; sys.exit(3)", "gate", "specs/gate.py cannot be imported: 3"),
        ("x = 1", "gate", "specs/gate.py must define one BlockSpec, with kind = 'gate'"),
        (SPECIFICATION, "gates", "specs/gates.py must define one BlockSpec, with kind = 'gates'"),
        (SPECIFICATION, "moe", "moe.py has the name of one of planer's own files"),
        (SPECIFICATION.replace('"g"', '"f"'), "gate", "the block gate has the symbol f of another block"),
    ],
)
def test_mistakes_in_own_files_are_named(own, specification, name, message):
    write_block(own, specification, MODULE, name)
    with pytest.raises(UserError, match=message):
        BACKBONE.symbols()


def test_a_specification_without_a_module_is_named(own):
    write_block(own)
    (own / "blocks/gate.py").unlink()
    with pytest.raises(UserError, match="there is specs/gate.py, but no blocks/gate.py"):
        kinds()


def test_a_missing_folder_is_named(own):
    with pytest.raises(UserError, match="PLANER_BLOCKS: there is no folder .*own/specs"):
        kinds()
