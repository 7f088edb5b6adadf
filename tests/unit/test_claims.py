"""Claims are read, measured and compared with their bars; every row of the README's tables has one."""

from __future__ import annotations

import json
import math
import re

import pytest

from benchmarks import claims, dry_run, figures
from benchmarks.output import start
from planer.errors import UserError
from planer.files import read_json
from tests.unit import made_up_arms
from tests.unit.made_up import evaluation
from tests.unit.toy import ROOT

pytestmark = pytest.mark.slow
SHIPPED = {path.stem: path for path in (ROOT / "benchmarks/claims").glob("*.yaml")}
DESCRIPTIONS = {"run", "network", "blocks"}
"""Columns of the README's tables without figures."""

TABLE = """
title: Made up
commands: [[python, make.py, "{files}"]]
file: found/{run}.json
figures: {loss: quality.loss, range: range of quality.loss, share: "rows[name=a].ms / rows[name=b].ms"}
rows:
  new:
    runs: [n0, n1]
    control: old
    figures: {loss: <= control + 1 standard error, range: <= 0.5, share: <= 0.4}
  old: {runs: [o0, o1], figures: {loss: no bar}}
"""
LOSSES = {"n0": 2.0, "n1": 3.0, "o0": 1.9, "o1": 3.1}
MAKE = f"""
import json, pathlib, sys
for path in map(pathlib.Path, sys.argv[1:]):
    path.parent.mkdir(exist_ok=True)
    rows = [{{"name": "a", "ms": 1}}, {{"name": "b", "ms": 2}}]
    path.write_text(json.dumps({{"quality": {{"loss": {LOSSES}[path.stem]}}, "rows": rows}}))
"""


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """The working folder, with one table, made_up, and the program that writes its files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(claims, "CLAIMS", tmp_path)
    monkeypatch.setattr(claims, "RESULTS", tmp_path / "results")
    (tmp_path / "made_up.yaml").write_text(TABLE)
    (tmp_path / "make.py").write_text(MAKE)
    return tmp_path


def main(monkeypatch, *arguments):
    """The exit status, or the message of a failed run."""
    monkeypatch.setattr("sys.argv", ["claims.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        start(claims.main)
    return ended.value.code


def test_a_table_is_measured_printed_and_written(folder, monkeypatch, capfd):
    assert main(monkeypatch) == 0
    lines = [re.split(r"  +", line) for line in capfd.readouterr().out.splitlines()]
    # Differences from the control are 0.1 and -0.1, 0 ± 0.1.
    assert [
        "new, 2 runs",
        "loss",
        "2.5 ± 0.5",
        "<= control + 1 standard error (2.6)",
        "reached",
        "old: 2.5 ± 0.6",
    ] in lines
    assert ["new, 2 runs", "range", "1", "<= 0.5", "MISSED", "old: 1.2"] in lines
    assert ["new, 2 runs", "share", "0.5 ± 0", "<= 0.4", "MISSED", "old: 0.5 ± 0"] in lines
    assert ["old, 2 runs", "loss", "2.5 ± 0.6"] in lines
    (path,) = (folder / "results").iterdir()
    assert "-claims-made_up-" in path.name
    written = read_json(path)
    assert [row["reached"] for row in written["rows"]] == [True, False, False, None]
    assert written["rows"][0]["measured"]["values"] == [2.0, 3.0]
    assert written["commands"][0]["command"][2:] == [f"found/{run}.json" for run in LOSSES]


def test_a_failed_command_is_named_and_other_figures_are_shown(folder, monkeypatch, capfd):
    (folder / "make.py").write_text(MAKE.replace("sys.argv[1:]", "sys.argv[2:]") + "\nsys.exit(3)\n")
    assert main(monkeypatch, "made_up") == 1
    shown = capfd.readouterr().out
    assert re.search("^new, 2 runs  loss  +not measured +found/n0.json does not exist;", shown, re.M)
    assert re.search("^old, 2 runs  loss  +2.5 ± 0.6$", shown, re.M)
    assert "FAILED with status 3: python make.py found/n0.json" in shown


def test_a_program_that_does_not_exist_is_a_failed_command(folder, monkeypatch, capfd):
    (folder / "made_up.yaml").write_text(TABLE.replace("python", "no-such-program"))
    assert main(monkeypatch) == 1
    assert "cannot start no-such-program: No such file or directory\n" in capfd.readouterr().out


def test_an_interrupted_command_has_time_to_end():
    """subprocess.run kills it after a quarter of a second."""

    class Interrupted:
        waits = 0

        def wait(self) -> int:
            self.waits += 1
            if self.waits == 1:
                raise KeyboardInterrupt
            return 0

    process = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        claims.wait(process)
    assert process.waits == 2


def test_unknown_names_and_the_list(folder, monkeypatch, capsys):
    assert main(monkeypatch, "nonsense") == "planer: unknown claims 'nonsense'; allowed: made_up"
    assert main(monkeypatch, "--list") == 0
    assert "<= control + 1 standard error" in capsys.readouterr().out
    assert not (folder / "found").exists(), "a list runs nothing"


@pytest.mark.parametrize(
    "need, reason",
    [
        ("device: cuda:99", "device: 'cuda:99'"),
        ("corpus: enwik8-mini", "the corpus enwik8-mini is not on this machine; set PLANER_DATA"),
        ("asset: fashion-mnist", "there is no folder found/fashion-mnist; make assets fetches it"),
    ],
)
def test_a_table_that_needs_another_machine_is_skipped(folder, monkeypatch, capsys, need, reason):
    monkeypatch.setenv("PLANER_DATA", str(folder))
    monkeypatch.setenv("PLANER_ASSETS", "found")
    (folder / "made_up.yaml").write_text(f"{need}\n{TABLE}")
    assert main(monkeypatch) == 0
    assert f"made_up: skipped: {reason}" in capsys.readouterr().out
    assert not (folder / "found").exists()


@pytest.mark.parametrize(
    "change, reason",
    [
        (("range: <= 0.5", "spread: <= 0.5"), "row new: unknown figure 'spread'; allowed: loss, range, share"),
        (("<= 0.5", "about 0.5"), "bar 'about 0.5': write <= 0.51"),
        (("control: old", "control: older"), "row new: control 'older' must be a row of as many runs"),
        (("[o0, o1]", "[o0]"), "row new: control 'old' must be a row of as many runs"),
        (("    control: old\n", ""), "row new: the bar '<= control + 1 standard error' needs a control"),
        (("loss: quality.loss", "loss: quality..loss"), "figure 'quality..loss': write a path"),
        (("title", "titel"), "unknown key titel"),
        (("runs: [n0, n1]", "runs: []"), "rows.new.runs is []"),
        (("{runs: [o0, o1], figures: {loss: no bar}}", "3"), "rows.old is 3"),
    ],
)
def test_mistakes_in_claims_are_one_line_before_anything_runs(folder, monkeypatch, change, reason):
    assert change[0] in TABLE
    (folder / "made_up.yaml").write_text(TABLE.replace(*change))
    text = main(monkeypatch)
    assert reason in text and text.startswith(f"planer: {folder}/made_up.yaml: ") and "\n" not in text
    assert not (folder / "found").exists()


def test_paths_of_figures():
    content = {"a": {"b": 2}, "list": [{"k": 1, "m": "x+y", "v": 3}, {"k": 1, "m": "z", "v": 4}], "none": None}
    assert figures.number(content, "a.b") == 2
    assert figures.number(content, "list[k=1,m=x+y].v") == 3
    for path, reason in {
        "a.c": "a.c: there is no c",
        "a.b.c": "there is no c",
        "list[k=1].v": "2 items have k=1, not 1",
        "list[k=2].v": "0 items have k=2, not 1",
        "a[k=2].v": "0 items",
        "none": "none is empty, not a number",
        "a": "not a number",
    }.items():
        with pytest.raises(UserError, match=re.escape(reason)):
            figures.number(content, path)


def test_mean_standard_error_and_range():
    found = figures.measured("a", [{"a": value} for value in (1.0, 2.0, 6.0)])
    assert found.value == 3 and found.standard_error == pytest.approx(math.sqrt(7 / 3))
    assert figures.measured("range of a", [{"a": 1}, {"a": 6}]) == figures.Measured((1.0, 6.0), 5.0, None)
    assert figures.measured("a / b", [{"a": 1, "b": 4}]) == figures.Measured((0.25,), 0.25, None)
    with pytest.raises(UserError, match="a / b: b is 0"):
        figures.measured("a / b", [{"a": 1, "b": 0}])


def test_limits_of_bars():
    own, control = (figures.Measured(values, sum(values) / 2, 0.1) for values in ((1.0, 3.0), (2.0, 2.5)))
    assert figures.limit_of("no bar", own, control) is None
    assert figures.limit_of("<= 1.01", own, None) == 1.01
    assert figures.limit_of(">= -0.01", own, None) == -0.01
    assert figures.limit_of("<= control", own, control) == 2.25
    assert figures.limit_of("<= control + 1 standard error", own, control) == 2.25 + 0.75, "of -1 and 0.5"
    assert figures.is_reached("<= 2", 2, 2) and not figures.is_reached("<= 2", 2.1, 2)
    assert figures.is_reached(">= 2", 2, 2) and not figures.is_reached(">= 2", 1.9, 2)


@pytest.mark.parametrize("name", ["demo", "enwik8-mini"])
def test_figures_of_networks_are_in_eval_json(name):
    content = evaluation("target_0.5", "s2fi", 1.2, 0.5, target=0.5)
    for figure in claims.read_table(name, SHIPPED).figures.values():
        assert figures.measured(figure, [content]).value >= 0


def test_figures_of_pretrained_networks_are_in_eval_json():
    content = made_up_arms.arm("d2dmoe", "experts", "dynamic_k")
    content["rows"] += [made_up_arms.row("accuracy", "top_k", k, 0.5, 0.1) for k in (6, 13)]
    content["rows"].append(made_up_arms.row("accuracy", "dynamic_k", 0.2, 0.5, 0.1, "oracle"))
    content["rows"].append(made_up_arms.row("accuracy", "dynamic_k", 0.5, 0.5, 0.1))
    for figure in claims.read_table("vit-fashion", SHIPPED).figures.values():
        assert math.isfinite(figures.measured(figure, [content]).value)


@pytest.mark.parametrize(
    ("name", "files", "low", "high"),
    [
        ("kernels", {"layers": "2026-11-22", "mixture": "mixture-latency-2-threads-2026-11-28"}, 0, math.inf),
        ("ranking", {"demo": "demo-ranking-2026-11-29"}, -1, 1),  # Kendall's tau
    ],
)
def test_figures_of_benchmarks_are_in_their_results(name, files, low, high):
    table = claims.read_table(name, SHIPPED)
    for row in table.rows.values():
        content = json.loads((ROOT / f"benchmarks/results/amd-epyc-{files[row.runs[0]]}.json").read_text())
        assert all(low < figures.measured(table.figures[figure], [content]).value < high for figure in row.figures)


def test_figures_of_a_dry_run_are_ratios_to_a_bare_one(monkeypatch):
    seconds = {dry_run.ROOT: (3.0, 6.0)}
    monkeypatch.setattr(dry_run, "dry_run", lambda folder, target: (*seconds.get(folder, (2.0, 3.0)), 5))
    table, found = claims.read_table("dry-run", SHIPPED), dry_run.measure(rounds=2)
    values = {name: figures.measured(figure, [found]).value for name, figure in table.figures.items()}
    assert values == {"processor time": 1.5, "wall-clock time": 2.0}


def test_every_row_of_the_readme_has_claims():
    tables = [claims.read_table(name, SHIPPED) for name in SHIPPED]
    names = {name for table in tables for row, what in table.rows.items() for name in (row, *what.runs)}
    known = {figure for table in tables for figure in table.figures}
    section = (ROOT / "README.md").read_text().partition("\n## Results\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in re.findall(r"^\|.*\|$", section, re.M)]
    assert rows, "the README shows results"
    heads = [head for head, rule in zip(rows, rows[1:], strict=False) if set("".join(rule)) <= set("-:")]
    for row in (row for row in rows if row not in heads and not set("".join(row)) <= set("-:")):
        assert any(re.split("[ ,:]", cell)[0] in names for cell in row[:2]), f"no claim names the row {row}"
    for head in heads:
        assert set(head) - DESCRIPTIONS <= known, "no claim has the figure of this column"
