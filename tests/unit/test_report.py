"""Comparison, figures and report, from made-up evaluations."""

from __future__ import annotations

import html
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import jinja2
import jsonschema
import pandas as pd
import pytest
import torch
from made_up import NINE, SCHEMA, SELECTION, VARIANTS, evaluation, spread

from planer.evaluation.comparison import chosen_row, compare
from planer.latency.table import LatencyTable
from planer.models import LanguageModel, initialise, save
from planer.report.figures import draw
from planer.report.page import section
from planer.report.page import table as grid
from planer.report.report import FIGURES, _summary, render, write_report
from planer.report.search_tables import search_tables
from planer.specs import Architecture, Attention, FeedForward

ROOT = Path(__file__).parents[2]


@pytest.fixture
def evaluations() -> list[dict]:
    return [evaluation(*values) for values in VARIANTS]


@pytest.fixture(scope="module")
def table() -> LatencyTable:
    shape = {"execution": "eager", "batch": 16, "tgt_len": 64, "mem_len": 64}
    costs = {
        "embedding_and_head": 2.0,
        "skip": 0.0,
        "attention_1": 0.2,
        "attention_8": 1.1,
        "feed_forward": 0.8,
        "moe_top2": 1.9,
    }
    balanced = [
        {"option": option, "attention": mode, "routing": "balanced"} | shape | spread(ms * factor)
        for mode, factor in (("cached", 1), ("recompute", 1.4))
        for option, ms in costs.items()
    ]
    uneven = [
        {"option": "moe_top2", "attention": "cached", "routing": routing} | shape | spread(ms)
        for routing, ms in (("skewed", 2.2), ("one", 1.1))
    ]
    return LatencyTable(pd.DataFrame(balanced + uneven), shape, {})


@pytest.fixture(scope="module")
def additivity() -> dict:
    costs = {"baseline": 9.8, "random_0": 3.0, "random_1": 5.0, "random_2": 8.0}
    return {
        "n": 4,
        "slowdown": 1.07,
        "pearson_r": 0.9981,
        "mape": 0.021,
        "max_ape": 0.06,
        "bias": -0.011,
        "intervals": {"pearson_r": [0.99, 0.9995], "mape": [0.01, 0.03], "bias": [-0.02, 0.01]},
        "bar": {"pearson_r": 0.99, "mape": 0.03, "max_ape": 0.08},
        "networks": [{"name": name, "estimated_ms": ms, "measured_ms": 1.02 * ms} for name, ms in costs.items()],
    }


@pytest.fixture
def write(table, additivity, tmp_path):
    """A function that draws evaluations and writes their report."""

    def report(evaluations: list[dict], folder: Path = tmp_path, analyses=(), **overlay) -> Path:
        facts, page = additivity | overlay, folder / "report.html"
        write_report(page, folder / "figures", evaluations, facts, draw(evaluations, table, facts), analyses)
        return folder / "report.html"

    return report


@pytest.fixture
def text(additivity):
    """A function that returns the text of a report without figures, which take long to draw."""

    def shown(evaluations: list[dict], analyses=(), **overlay) -> str:
        return "".join(parse(render(evaluations, additivity | overlay, {}, analyses)).text)

    return shown


def test_made_up_evaluations_are_valid(evaluations):
    for values in evaluations:
        jsonschema.Draft202012Validator(SCHEMA).validate(values)


def test_comparison_has_a_row_per_variant(evaluations):
    table = compare(evaluations).set_index("variant")
    assert list(table.index) == [values[0] for values in VARIANTS]
    found = table.loc["target_0.5"]
    assert found["test"] == pytest.approx(1.62 / math.log(2)) and found["unit"] == "bpc"
    assert found["latency_ms"] == pytest.approx(5.1) and found["table_ms"] == pytest.approx(0.97 * 5.1)
    assert found["target_requested"] == 0.5 and math.isnan(table.loc["par", "target_requested"])
    assert found["params"] == evaluations[2]["architecture"]["params"]
    assert pd.isna(table.loc["target_0.3", "dynamic_tau"]), "it has nothing to convert"
    assert found["search_ratio"] == 1.5 and math.isnan(table.loc["par", "search_ratio"])


def test_comparison_has_method_start_and_repeat(evaluations):
    names = ["baseline", "target_0.5-scratch-seed2", "random_0.5_3", "par_search"]
    table = compare([evaluations[0] | {"variant": name} for name in names])
    found = table[["method", "start", "repeat"]].itertuples(index=False, name=None)
    assert list(found) == [
        ("baseline", "scratch", 0), ("target", "scratch", 2), ("random", "parent", 0), ("par_search", "parent", 0),
    ]  # fmt: skip


def test_report_shows_controls_and_a_summary_of_every_network(evaluations, text):
    shallow = evaluation("shallow_0.5", "(s8f)x2", 1.61, 0.5, 0.5)
    page = text([*evaluations, shallow])
    assert "target_0.5: dense, 1.96 times the baseline's speed at 101.2% of its nll" in page
    assert "No searched network is better than the shallow control of its latency target: target_0.5 has +0.62%" in page
    assert page.index("No searched network") < page.index("not cover another training") < page.index("What to try")
    assert "Beside the baseline" not in text(evaluations[:1])


def test_requested_targets_have_all_their_digits(evaluations):
    rounded = evaluation("target_0.505", "s4fim1s2ifi", 1.62, 0.501, 0.505)
    assert "0.505" in search_tables([rounded])[0]["rows"][0]["cells"]
    requested = [row["cells"][7] for row in _summary([evaluations[0], rounded])["rows"]]
    assert requested == ["\u2013", "0.505"]


def test_comparison_takes_evaluations_that_lack_fields(evaluations, tmp_path):
    partial = [{"variant": "target_0.9"}, *evaluations]
    table = compare(partial)
    assert table.iloc[0].drop(["variant", "method", "start", "repeat", "unit"]).isna().all()
    assert table.dtypes.equals(compare(evaluations).dtypes)
    table.to_parquet(tmp_path / "comparison.parquet")


def test_comparison_has_the_choice_and_its_threshold(evaluations):
    evaluations[2]["selection"] = SELECTION | {"chosen_by": "proxy training", "source": "random", "solver": None}
    table = compare(evaluations).set_index("variant")
    assert tuple(table.loc["target_0.5", ["chosen_by", "source"]]) == ("proxy training", "random")
    assert table.loc["par", ["chosen_by", "source"]].isna().all()
    chosen, row = evaluations[1]["conversion"]["chosen"], chosen_row(evaluations[1])
    found = table.loc["par"]
    assert found["dynamic_tau"] == chosen["tau"] == row["tau"] > 0
    for name in ("nll_over_dense", "nll_over_tau0", "speed_up_over_dense"):
        assert found[f"dynamic_{name}"] == chosen[name]


def test_a_chosen_random_network_is_not_reported_as_the_solvers(evaluations, text):
    """The solver also scores networks that it did not propose."""
    candidates = [
        {"pattern": pattern, "source": source, "status": status, "score": 0.1, "estimated": 0.5, "measured": 0.5}
        | {"supernet_nll": 2.0, "proxy_share": 1.0, "proxy_nll": nll}
        for pattern, source, status, nll in (
            ("s4iim1s2ifi", "solver", "optimal", 1.9),
            (evaluations[2]["architecture"]["pattern"], "random", None, 1.8),
        )
    ]
    choice = {"chosen_by": "proxy training", "source": "random", "status": None, "gap": None}
    evaluations[2]["selection"] = SELECTION | choice | {"candidates": candidates}
    jsonschema.Draft202012Validator(SCHEMA).validate(evaluations[2])
    page = text(evaluations[:3])
    assert "random network, by proxy training of 2 candidates" in page
    assert "solver on" not in page and "target_0.5: proxy training of 2 candidates" in page


def test_the_measured_latency_is_that_of_the_chosen_network(evaluations):
    """Others were measured before and after it."""
    measured = {evaluations[2]["architecture"]["pattern"]: 0.4987, "s4iim1s2ifi": 0.4951}
    candidates = [{"pattern": name, "measured": ratio, "supernet_nll": None} for name, ratio in measured.items()]
    evaluations[2]["selection"] = SELECTION | {"candidates": candidates}
    rounds = [{"budget": 0.5, "estimated": 0.49, "measured": ratio} for ratio in (0.5301, *measured.values())]
    evaluations[2]["target"]["rounds"] = rounds
    (found,) = search_tables(evaluations[:3])
    assert found["rows"][0]["cells"][found["columns"].index("measured")] == "0.499"


class Page(HTMLParser):
    """Collects ids and addresses, and checks that elements nest."""

    VOID = ("meta", "br", "link", "img")

    def __init__(self) -> None:
        super().__init__()
        self.open, self.ids, self.references, self.text = [], [], [], []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.ids += [values["id"]] if "id" in values else []
        self.references += [value for name, value in values.items() if name in ("src", "href", "xlink:href")]
        self.references += re.findall(r"url\(([^)]*)\)", " ".join(filter(None, values.values())))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def parse(source: str) -> Page:
    page = Page()
    page.feed(source)
    page.close()
    assert not page.open
    return page


def test_analyses_come_before_the_provenance(evaluations, text):
    page = text(evaluations, [section("Repeats", "Three of them.", "", grid(["seed"], [["1"]]))])
    assert page.index("Dynamic k") < page.index("Three of them.") < page.index("Where the numbers come from.")


def test_report_refers_to_no_other_files(evaluations, write, tmp_path):
    page = parse(write(evaluations).read_text())
    assert page.references and all(reference.startswith("#") for reference in page.references)
    assert {reference[1:] for reference in page.references} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    names = ["architectures", "block_latencies", "dynamic_k", "estimated_measured", "quality_latency", "routings"]
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == [f"{name}.svg" for name in names]
    text = "".join(page.text)
    assert "0.5 of the baseline's latency requested, 0.510 measured" in text
    assert "2.337 bpc, 1.2% more nll than the baseline (2.308), +0.029 bpc" in text
    assert "the network has no dense feed-forward layer" in text
    assert "0.9981 (0.9900 to 0.9995)" in text and "-1.1% (-2.0% to +1.0%)" in text
    assert "All bars are met." in text and "loosened" not in text
    assert "search cost, wanted at most 1" in text and "1.50" in text


def test_report_names_missed_and_loosened_bars(evaluations, text):
    page = text(evaluations, bar={"pearson_r": 0.95, "mape": 0.02, "max_ape": 0.1})
    assert "Missed: mean error." in page
    assert "Bars were loosened: Pearson r 0.9500 instead of 0.9900, largest error 10.0% instead of 8.0%." in page


def test_report_has_the_same_bytes_every_time(evaluations, write, tmp_path):
    for folder in (tmp_path / "a", tmp_path / "b"):
        write(evaluations, folder)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*"))
    assert len(files) == 7
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_the_scores_are_said_to_be_of_the_incumbent_that_was_scored(evaluations, additivity):
    page = render(evaluations, additivity, {"choices": '<svg viewBox="0 0 1 1"></svg>'})
    assert "when one option is switched in the incumbent of the last round" in "".join(parse(page).text)


def test_report_escapes_text(evaluations, write):
    hostile = "<script>alert(1)</script>"
    evaluations[0]["experiment"] = evaluations[2]["architecture"]["pattern"] = hostile
    evaluations[3]["conversion"]["reason"] = evaluations[0]["provenance"]["device"] = hostile
    path = write(evaluations)
    assert "<script" not in path.read_text()
    assert "".join(parse(path.read_text()).text).count(hostile) >= 4


def test_report_of_one_network_without_converted_layers(evaluations, write, tmp_path):
    page = write(evaluations[3:], networks=[])
    assert not (tmp_path / "figures/dynamic_k.svg").exists()
    parse(page.read_text())


def test_report_starts_with_the_verdicts_and_names_files(evaluations, text):
    page = text(evaluations)
    for name, *_ in VARIANTS:
        assert page.index("Verdict") < page.index(name) < page.index("What to try")
    assert "snakemake --cores 2 results/demo/target_0.6/eval.json" in page
    assert page.index("What to try") < page.index("routers/model.safetensors") < page.index("How every network was")


def test_the_code_that_loads_a_network_runs(evaluations, additivity, tmp_path, monkeypatch, capsys):
    network = LanguageModel(Architecture(20, 32, (Attention(2, 16), FeedForward(48))))
    initialise(network, torch.Generator().manual_seed(0))
    save(network, tmp_path / "results/demo/par/routers")
    source = render(evaluations[:2], additivity, {})
    (lines,) = re.findall(r"<pre><code>(import planer.*?)</code></pre>", source, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(html.unescape(lines), {})
    assert lines.count("\n") == 2
    assert capsys.readouterr().out.split() == ["sf", str(network.architecture.params())]


def test_every_figure_has_a_caption_in_snakemakes_report():
    caption = jinja2.Template((ROOT / "workflow/report/figure.rst").read_text(), undefined=jinja2.StrictUndefined)
    captions = {name: caption.render(snakemake=SimpleNamespace(wildcards={"figure": name})) for name in FIGURES}
    assert len(set(captions.values())) == len(FIGURES) and all(text.endswith(".") for text in captions.values())
    assert caption.render(snakemake=SimpleNamespace(wildcards={"experiment": "demo"})) == captions["pareto"]


def crowd() -> list[dict]:
    """Six networks with nearly equal values, and the baseline."""
    seeds = [evaluation(f"target_0.5-seed{k}", "s4f", 1.6 + 0.001 * k, 0.5 + 0.004 * k, 0.5) for k in range(1, 7)]
    return [evaluation(*VARIANTS[0]), *seeds]


def nine() -> list[dict]:
    return [evaluation(*values) for values in NINE]


def test_legends_of_nine_networks_are_complete(table, additivity):
    figures = draw(nine(), table, additivity)
    texts = {name: [text.get_text() for text in figure.legends[0].get_texts()] for name, figure in figures.items()}
    assert texts["quality_latency"] == ["baseline", "pattern", "searched", "random control"]
    lines = figures["dynamic_k"].axes[0].lines
    looks = {(line.get_color(), line.get_marker(), line.get_linestyle()) for line in lines if len(line.get_xdata()) > 1}
    assert len(looks) == len(NINE) and all(any(name in text for text in texts["dynamic_k"]) for name, *_ in NINE)
    for figure in figures.values():
        figure.draw_without_rendering()
        assert figure.legends[0].get_window_extent().width <= figure.bbox.width


@pytest.mark.parametrize("networks", [crowd, nine])
def test_labels_overlap_neither_each_other_nor_points(networks, table, additivity):
    values = networks()
    figure = draw(values, table, additivity)["quality_latency"]
    (axes,) = figure.axes
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes.texts if text.get_text()]
    points = [axes.transData.transform((line.get_xdata()[0], line.get_ydata()[0])) for line in axes.lines]
    assert len(boxes) == len(values)
    for index, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[index + 1 :])
        assert not any(box.contains(*point) for point in points)
