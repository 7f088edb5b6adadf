"""One supernet for many targets compared with separate searches."""

from __future__ import annotations

import math

import pytest
import torch
from made_up import OPTIONS, evaluation
from planted import losses
from toy import VOCAB_SIZE, experiment, latency_table

from planer.config import ParetoConfig
from planer.config.variant import parse_variant
from planer.errors import UserError
from planer.evaluation.pareto import pareto, supernet_nll
from planer.files import write_json
from planer.report.drawing import to_svg
from planer.report.pareto import pareto_figure, pareto_section
from planer.search.network import chosen_network, space_of
from planer.specs import Architecture, from_notation

CONFIG = ParetoConfig(targets=(0.9, 0.5, 0.6, 0.7), compared=(0.5, 0.7, 0.9))


def network(pattern: str, estimated: float, *losses: tuple[str, float | None]) -> dict:
    """An architecture.yaml of a network chosen from solutions (pattern, loss)."""
    solutions = [
        {"pattern": Architecture(256, 128, from_notation(path, OPTIONS)).pattern, "supernet_nll": nll}
        for path, nll in losses
    ]
    architecture = Architecture(256, 128, from_notation(pattern, OPTIONS))
    selection = {"estimated": estimated, "candidates": solutions}
    return {"pattern": architecture.pattern, **architecture.to_dict(), "selection": selection}


def trained(variant: str, nll: float, measured: float, seconds: float) -> dict:
    found = evaluation(variant, "s4f", nll, measured, parse_variant(variant).target)
    found["provenance"]["wall_seconds"] = {"search": seconds, "retrain": 90.0}
    return found


@pytest.fixture
def networks() -> list[dict]:
    """In the order of CONFIG's targets."""
    return [
        network("s4fm2", 0.899, ("s4fm2", 1.60)),
        network("s4fi", 0.495, ("ffi", 1.90), ("s4fi", 1.80)),
        network("s4s4i", 0.570, ("s4s4i", 1.85)),
        network("s4ff", 0.700, ("s4ff", 1.75), ("ffi", 1.70)),
    ]


@pytest.fixture
def evaluations() -> list[dict]:
    return [
        trained("target_0.9", 1.60, 0.91, 80.0),
        trained("shared_0.5", 1.71, 0.49, 80.0),
        trained("target_0.5", 1.70, 0.50, 60.0),
        trained("shared_0.7", 1.64, 0.71, 80.0),
        trained("target_0.7", 1.65, 0.69, 70.0),
    ]


@pytest.fixture
def report(networks, evaluations) -> dict:
    return pareto(CONFIG, networks, evaluations)


def test_rows_go_from_the_strictest_target_to_the_loosest(report, tmp_path):
    assert [row["target"] for row in report["targets"]] == [0.5, 0.6, 0.7, 0.9]
    assert [row["variant"] for row in report["targets"]] == ["shared_0.5", "shared_0.6", "shared_0.7", "target_0.9"]
    assert [row["supernet_nll"] for row in report["targets"]] == [1.80, 1.85, 1.75, 1.60]
    assert [row["slack"] for row in report["targets"]] == pytest.approx([0.01, 0.05, 0, 0.001 / 0.9])
    assert report["supernet"] == "target_0.9" and report["unit"] == "bpc"
    write_json(tmp_path / "pareto.json", report)


def test_the_section_names_the_better_search_and_the_costs(report):
    page = pareto_section(report)
    wins = "The one chosen with the shared supernet was better 1 times, the separate search's 1 times, equal 1 times"
    assert wins in page["text"] and "takes 80 s, separate searches about 280 s" in page["text"]
    assert "Either may come from a proposer that does not ask the supernet" in page["text"]
    trained, chosen = page["tables"]
    assert chosen["title"] == "Networks chosen with the shared supernet"
    assert [row["cells"][-1] for row in trained["rows"]] == ["separate", "shared", "same"]
    assert [row["cells"][0] for row in chosen["rows"]] == ["0.5", "0.6", "0.7", "0.9"]
    for table in page["tables"]:
        assert all(len(row["cells"]) == len(table["columns"]) for row in table["rows"])


def test_slower_and_worse_networks_are_not_on_the_front(report):
    assert [row["on_front"] for row in report["targets"]] == [True, False, True, True]


def test_the_loss_is_that_of_the_chosen_network():
    """Proxy training may choose another than the first solution."""
    assert supernet_nll(network("s4ff", 0.7, ("ffi", 1.6), ("s4ff", 1.7), ("s4ii", 1.9))) == 1.7
    assert supernet_nll(network("s4ff", 0.7, ("s4ff", None))) is None


def test_the_cost_of_the_shared_search_is_divided(report):
    half, seventy, loosest = report["compared"]
    assert half["shared"]["search_seconds"] == 20 and half["separate"]["search_seconds"] == 60
    assert half["winner"] == "separate" and seventy["winner"] == "shared"
    assert half["shared"]["test"] == pytest.approx(1.71 / math.log(2)) and half["shared"]["measured"] == 0.49
    assert half["separate"]["latency_ms"] == pytest.approx(5.0)
    assert loosest["shared"] | {"search_seconds": 80} == loosest["separate"] and loosest["winner"] == "same"


def test_totals(report):
    totals = report["totals"]
    assert totals["shared_search_seconds"] == 80 and totals["separate_search_seconds"] == 60 + 70 + 80
    assert totals["separate_search_seconds_all_targets"] == pytest.approx(4 * 70)
    assert totals["wins"] == {"shared": 1, "separate": 1, "same": 1}
    assert totals["mean_test"]["separate"] == pytest.approx(1.65 / math.log(2))
    assert (totals["targets"], totals["compared"]) == (4, 3)


def test_figure_shows_every_network_and_labels_each_point_once(report):
    figure = pareto_figure(report)
    left, right = figure.axes
    assert [text.get_text() for text in left.texts if text.get_text()] == ["0.5", "0.6", "0.7", "0.9"]
    assert sorted(text.get_text() for text in right.texts if text.get_text()) == [
        "0.5",
        "0.5",
        "0.7",
        "0.7",
        "0.9 (both)",
    ]
    hollow = [line for line in left.lines if line.get_markerfacecolor() == "#ffffff"]
    assert [line.get_xdata()[0] for line in hollow] == [0.570]
    assert to_svg(figure) == to_svg(pareto_figure(report))


def test_networks_chosen_by_architecture_weights_have_no_loss(networks, evaluations):
    for solution in [solution for content in networks for solution in content["selection"]["candidates"]]:
        solution["supernet_nll"] = None
    found = pareto(CONFIG, networks, evaluations)
    assert {row["on_front"] for row in found["targets"]} == {None}
    assert len(pareto_figure(found).axes) == 1


def test_a_shared_supernet_gives_the_same_network_as_a_separate_one():
    config, table = experiment(candidates={"scores": "alpha"}), latency_table()
    alpha = torch.randn(4, 6, generator=torch.Generator().manual_seed(3))
    found = []
    for method in ("shared", "target"):
        variant = parse_variant(f"{method}_0.6")
        space = space_of(config, variant, VOCAB_SIZE, table, 1, alpha=alpha, supernet_loss=sum)
        found.append(
            chosen_network(config, variant, space, table, None, lambda c, share: losses(float(sum(c.options))))
        )
    shared, separate = found
    assert shared[0] == separate[0]
    assert shared[1]["selection"] | {"variant": "target_0.6"} == separate[1]["selection"]
    assert None not in [candidate["supernet_nll"] for candidate in separate[1]["selection"]["candidates"]]


def test_names_of_both_searches():
    config = experiment().pareto
    assert config.supernet == config.shared(0.95) == config.separate(0.95) == "target_0.95"
    assert config.shared(0.5) == "shared_0.5" and config.separate(0.5) == "target_0.5"


@pytest.mark.parametrize(
    "targets, compared, words",
    [
        ([0.5, 0.7, 0.9], [0.5, 0.7], "3 to 100 values, each once"),
        ([0.5, 0.7, 0.9], [0.5, 0.7, 0.7], "each once"),
        ([0.5, 0.7, 0.9], [0.5, 0.7, 0.8], "0.8 is none of the targets"),
        ([0.5, 0.7, 0.9, 0.9], [0.5, 0.7, 0.9], "each once"),
        ([0.5, 0.7, 1.1], [0.5, 0.7, 1.1], "1.1; it must be from 0.001 to 1"),
    ],
)
def test_wrong_settings_are_refused(targets, compared, words):
    with pytest.raises(UserError, match=words) as error:
        experiment(pareto={"targets": targets, "compared": compared})
    assert "pareto" in str(error.value) and "\n" not in str(error.value)
