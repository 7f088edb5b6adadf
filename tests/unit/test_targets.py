"""Targets of the command line: the names in them, and the refusal of wrong ones."""

from __future__ import annotations

import re

import pytest

from planer.errors import UserError
from planer.workflow.targets import check_folders, check_made, names_in

DATASETS = ("pysource", "text8")
RULES = {
    "all": [],
    "prepare_data": ["results/data/{dataset,.+}/train.npy", "logs/data/{dataset,.+}.log"],
    "compare": ["results/{experiment,.+}/report.html", "results/{experiment,.+}/figures"],
    "evaluate": ["results/{experiment,.+}/{variant,.+}/eval.json"],
    "finetune": ["results/{experiment,(?!demo/).+}/{variant,.+}/finetune/model.safetensors"],
}


class File(str):
    """An output of Snakemake, whose wildcards have constraints."""

    def match(self, path: str) -> re.Match | None:
        return re.fullmatch(re.sub(r"\{\w+,([^}]*)\}", r"(\1)", self), path)


def check(target: str) -> dict[str, str]:
    names = names_in(target, DATASETS)
    check_made(target, {rule: list(map(File, files)) for rule, files in RULES.items()}, names)
    return names


@pytest.mark.parametrize(
    "target, names",
    [
        ("results/demo/report.html", {"experiment": "demo"}),
        ("results/demo/figures", {"experiment": "demo"}),
        ("results/demo/target_0.5/eval.json", {"experiment": "demo", "variant": "target_0.5"}),
        ("results/data/text8/train.npy", {"dataset": "text8"}),
        ("all", {}),
    ],
)
def test_the_names_in_a_target(target, names):
    assert check(target) == names


@pytest.mark.parametrize(
    "target, reason",
    [
        ("results/$(touch x)/report.html", r"experiment '\$\(touch x\)': names hold"),
        ("results/demo/$(touch x)/eval.json", r"unknown variant '\$\(touch x\)'"),
        ("results/data/$(touch x)/train.npy", r"dataset '\$\(touch x\)': names hold"),
        ("results/a\nb/report.html", r"experiment 'a\\nb': names hold"),
        (f"results/{'x1' * 200}/report.html", "experiment 'x1x1.*names have at most 100 characters"),
        (f"results/demo/pattern_{'x1' * 200}/eval.json", "variant 'pattern_x1.*names have at most 100 characters"),
        (f"results/demo/pattern_{'x1' * 20}/eval.json", "variant 'pattern_x1.*names must not end in 20 equal parts"),
        ("results/mlartifacts/report.html", "give the experiment another name"),
        ("results/data/enwik9/train.npy", "unknown dataset 'enwik9'; allowed: pysource, text8"),
        ("results/demo/target_0.50/eval.json", "write it target_0.5"),
        ("results/demo/figures/eval.json", "unknown variant 'figures'"),
        ("results/demo/target_0.5/evil.json", "did you mean results/demo/target_0.5/eval.json?"),
        ("results/data/report.html", "no rule makes 'results/data/report.html'"),
        ("results/data/text8/train.np", "did you mean results/data/text8/train.npy?"),
        ("results/demo", "no rule makes 'results/demo'"),
        ("results/demo/par/finetune/model.safetensors", "no rule makes 'results/demo/par/finetune/model.safetensors'$"),
        ("", "no rule makes '.'"),
        ("evaluate", "makes many files; name one, such as results/{experiment}/{variant}/eval.json"),
    ],
)
def test_a_wrong_target_is_refused(target, reason):
    with pytest.raises(UserError, match=reason) as error:
        check(target)
    assert "\n" not in str(error.value)


def test_an_absolute_path_is_refused(tmp_path, monkeypatch):
    """Snakemake would find no rule for it."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="relative to the working directory: 'results/demo/report.html'"):
        check(str(tmp_path / "results/demo/report.html"))


def test_a_file_where_jobs_need_a_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    check_folders("results", "scratch")
    (tmp_path / "scratch").symlink_to("nowhere")
    with pytest.raises(UserError, match="scratch is no folder; move it away"):
        check_folders("results", "scratch")


def test_the_names_in_targets_of_pretrained_experiments():
    for path in (
        "results/models/net/manifest.json",
        "results/data/net-task/train.safetensors",
        "results/net/arms.html",
    ):
        assert names_in(path, DATASETS, ["net"]) == {"experiment": "net"}
    assert names_in("results/net/d2dmoe/eval.json", DATASETS, ["net"])["variant"] == "d2dmoe"
    for path, reason in (
        ("results/models/demo/manifest.json", "'demo' has no pretrained network; allowed: net"),
        ("results/data/demo-task/train.safetensors", "unknown dataset 'demo-task'"),
    ):
        with pytest.raises(UserError, match=reason):
            names_in(path, DATASETS, ["net"])
