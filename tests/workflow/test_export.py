"""The Hugging Face folder of a variant."""

from __future__ import annotations

import pytest

import planer
from planer.__main__ import main
from planer.files import read_json

pytestmark = pytest.mark.workflow


def test_an_export_needs_an_evaluated_network(workspace):
    jobs = workspace.planned("results/tiny/baseline/hf")
    assert jobs["export"] == jobs["evaluate"] == jobs["train_routers"] == 1


def test_a_trained_network_is_exported_described_and_loaded(finished, tmp_path, capsys):
    variant = finished.folder / "results/tiny/target_0.5"
    main(["export", str(variant / "routers"), str(tmp_path / "hf")])
    main(["info", str(tmp_path / "hf")])
    report = read_json(variant / "eval.json", "eval")
    out = capsys.readouterr().out
    assert f"test:       {report['quality']['final']['test']['bpc']:.4g} bpc (dense, mem_len 64)" in out
    assert f"speed:      {report['summary']['dense']['speed_up']:.2f} times the baseline's at " in out
    text = planer.load(tmp_path / "hf").generate("def ", tokens=20)
    assert text == planer.load(variant / "routers").generate("def ", tokens=20) and text.startswith("def ")
