"""The comparison, the figures and the report, from made-up evaluations."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import jsonschema
import pandas as pd
import pytest

from planer.architecture import Architecture, Attention, FeedForward, MoE, Skip, from_notation
from planer.evaluation.comparison import best_threshold, compare
from planer.evaluation.figures import draw
from planer.evaluation.report import write_report

SCHEMA = json.loads((Path(__file__).parents[2] / "config/schemas/eval.schema.json").read_text())
OPTIONS = {
    "i": Skip(),
    "f": FeedForward(512),
    **{f"s{heads}": Attention(heads, 16) for heads in (1, 2, 4, 8)},
    **{f"m{k}": MoE(512, 8, k) for k in (1, 2)},
}
BASELINE_MS = {"cached": 10.0, "recompute": 14.0}


def score(nll: float) -> dict:
    return {"nll": nll, "bpc": nll / math.log(2), "tokens": 99_984}


def quality(nll: float) -> dict:
    protocol = {"batch": 16, "tgt_len": 256, "mem_len": 128, "clamp_len": 0, "same_length": True}
    final = protocol | {"valid": score(nll - 0.02), "test": score(nll)}
    train = protocol | {"same_length": False, "valid": score(nll), "test": score(nll + 0.02)}
    return {"unit": "bpc", "final": final, "train": train}


def spread(ms: float) -> dict:
    return {"median_ms": ms, "p10_ms": 0.96 * ms, "p90_ms": 1.07 * ms, "n": 20}


def evaluation(variant: str, pattern: str, nll: float, share: float, target: float | None = None) -> dict:
    """An eval.json of a network that takes share of the baseline's time."""
    architecture = Architecture(256, 128, from_notation(pattern, OPTIONS))
    flops, baseline_flops = architecture.flops(16, 64, 64, "cached"), 3.0e6
    converted = [i for i, block in enumerate(architecture.blocks) if isinstance(block, FeedForward)]
    latency = [
        {"batch": 16, "tgt_len": 64, "mem_len": 64, "attention": mode, "headline": mode == "cached"}
        | spread(share * ms)
        | {
            "table_ms": 0.97 * share * ms,
            "baseline_median_ms": ms,
            "baseline_table_ms": 0.98 * ms,
            "speed_up": 1 / share,
        }
        for mode, ms in BASELINE_MS.items()
    ]
    dense = len(converted) * 4 * 128 * 512

    def row(tau: float) -> dict:
        experts = 64 * math.exp(-8 * tau)
        ratio = 0.03 + experts / 64
        return {
            "tau": tau,
            "valid": score(nll + tau**2 - 0.01),
            "test": score(nll + tau**2 + 0.01),
            "converted_flops": ratio * dense,
            "converted_flops_ratio": ratio if converted else None,
            "network_flops": flops + (ratio - 1) * dense,
            "experts_per_token": experts if converted else None,
            "experts_per_layer": [experts] * len(converted),
            "latency": spread(share * 10 * (0.6 + 0.5 * ratio)),
        }

    return {
        "experiment": "demo",
        "variant": variant,
        "architecture": {
            "pattern": architecture.pattern,
            "params": architecture.params(),
            "active_params": architecture.active_params(),
            "blocks": [{"kind": b.kind, "option": b.name, "symbol": b.symbol} for b in architecture.blocks],
        },
        "quality": quality(nll),
        "latency": latency,
        "target": target and {"requested": target, "estimated": 0.99 * share, "measured": share},
        "flops": {
            "attention": "cached",
            "counted": flops,
            "closed_form": flops,
            "baseline": baseline_flops,
            "baseline_ratio": flops / baseline_flops,
        },
        "dynamic_k": [row(tau) for tau in ([0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5] if converted else [0.0])],
        "conversion": {
            "converted_layers": len(converted),
            "blocks": converted,
            "num_experts": [64] * len(converted),
            "reason": None if converted else "the network has no dense feed-forward layer",
            "sparsified": {"valid": score(nll - 0.01), "test": score(nll + 0.01)},
            "sparsified_latency": spread(share * 10),
            "tau0_difference": 1.2e-8,
        },
        "reference": {"bigram": score(2.4)},
        "baseline": {
            "pattern": "(sf)x4",
            "params": 1_000_000,
            "active_params": 1_000_000,
            "quality": quality(1.6),
            "latency": [{"attention": mode, "table_ms": 0.98 * ms, **spread(ms)} for mode, ms in BASELINE_MS.items()],
        },
        "provenance": {
            "git_commit": "unknown",
            "config_hash": "0123456789abcdef",
            "device": "a CPU",
            "dtype": "float32",
            "versions": {"python": "3.11.9", "torch": "2.13.0"},
            "seed": 1111,
            "wall_seconds": {"search": 61.0, "retrain": 95.5},
        },
    }


VARIANTS = (
    ("baseline", "(s8f)x4", 1.60, 1.0, None),
    ("par", "(s8ff)x2(f)x2", 1.65, 0.72, None),
    ("target_0.5", "s4fim1s2ifi", 1.62, 0.51, 0.5),
    ("target_0.3", "s1iim1iiim2", 1.72, 0.31, 0.3),
)


@pytest.fixture
def evaluations() -> list[dict]:
    return [evaluation(*values) for values in VARIANTS]


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    shape = {"execution": "eager", "batch": 16, "tgt_len": 64, "mem_len": 64}
    costs = {"stem": 2.0, "skip": 0.0, "attention_1": 0.2, "attention_8": 1.1, "feed_forward": 0.8, "moe_top2": 1.9}
    return pd.DataFrame(
        [
            {"option": option, "attention": mode} | shape | spread(ms * factor)
            for mode, factor in (("cached", 1), ("recompute", 1.4))
            for option, ms in costs.items()
        ]
    )


@pytest.fixture(scope="module")
def additivity() -> dict:
    costs = {"baseline": 9.8, "random_0": 3.0, "random_1": 5.0, "random_2": 8.0}
    return {
        "n": 4,
        "pearson_r": 0.9981,
        "mape": 0.021,
        "max_ape": 0.06,
        "bias": -0.011,
        "intervals": {"pearson_r": [0.99, 0.9995], "mape": [0.01, 0.03], "bias": [-0.02, 0.01]},
        "bar": {"pearson_r": 0.99, "mape": 0.03, "max_ape": 0.08},
        "networks": [{"name": name, "estimated_ms": ms, "measured_ms": 1.02 * ms} for name, ms in costs.items()],
    }


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


def test_comparison_takes_evaluations_that_lack_fields(evaluations, tmp_path):
    partial = [{"variant": "target_0.9"}, *evaluations]
    table = compare(partial)
    assert table.iloc[0].drop(["variant", "unit"]).isna().all()
    assert table.dtypes.equals(compare(evaluations).dtypes)
    table.to_parquet(tmp_path / "comparison.parquet")


def test_best_threshold_is_the_cheapest_that_validation_allows(evaluations):
    values = evaluations[0]
    limit = 1.02 * values["quality"]["final"]["valid"]["nll"]
    best = best_threshold(values)
    allowed = [row["tau"] for row in values["dynamic_k"] if row["valid"]["nll"] <= limit]
    assert best["tau"] == max(allowed) == 0.1
    assert best_threshold(values, tolerance=-0.1) is None
    for row in values["dynamic_k"]:
        row["test"]["nll"] = 9.0
    assert best_threshold(values) is best, "the test split has no say"


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


def read(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text())
    page.close()
    assert not page.open
    return page


def test_report_needs_nothing_else(evaluations, table, additivity, tmp_path):
    write_report(tmp_path / "report.html", tmp_path / "figures", evaluations, table, additivity)
    page = read(tmp_path / "report.html")
    assert page.references and all(reference.startswith("#") for reference in page.references)
    assert {reference[1:] for reference in page.references} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    names = ["architectures", "block_latencies", "dynamic_k", "estimated_measured", "quality_latency"]
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == [f"{name}.svg" for name in names]
    text = "".join(page.text)
    assert "target_0.5: 5.10 ms per call, 1.96 times as fast as the baseline, 2.337 bpc" in text
    assert "the network has no dense feed-forward layer" in text
    assert "0.9981 (0.9900 to 0.9995)" in text and "-1.1% (-2.0% to +1.0%)" in text


def test_report_is_the_same_every_time(evaluations, table, additivity, tmp_path):
    for folder in (tmp_path / "a", tmp_path / "b"):
        write_report(folder / "report.html", folder / "figures", evaluations, table, additivity)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*"))
    assert len(files) == 6
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_report_escapes_text(evaluations, table, additivity, tmp_path):
    hostile = "<script>alert(1)</script>"
    evaluations[0]["experiment"] = evaluations[2]["variant"] = hostile
    evaluations[3]["conversion"]["reason"] = evaluations[0]["provenance"]["device"] = hostile
    write_report(tmp_path / "report.html", tmp_path / "figures", evaluations, table, additivity)
    assert "<script" not in (tmp_path / "report.html").read_text()
    assert "".join(read(tmp_path / "report.html").text).count(hostile) >= 4


def test_report_of_one_network_that_nothing_was_converted_in(evaluations, table, additivity, tmp_path):
    write_report(tmp_path / "report.html", tmp_path / "figures", evaluations[3:], table, additivity | {"networks": []})
    assert not (tmp_path / "figures/dynamic_k.svg").exists()
    read(tmp_path / "report.html")


def test_labels_cover_neither_each_other_nor_a_point(evaluations, table, additivity):
    """Six networks nearly on top of one another."""
    crowd = [evaluation(f"target_0.5-seed{k}", "s4f", 1.6 + 0.001 * k, 0.5 + 0.004 * k, 0.5) for k in range(6)]
    figure = draw([evaluations[0], *crowd], table, additivity)["quality_latency"]
    (axes,) = figure.axes
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes.texts if text.get_text()]
    points = [axes.transData.transform((line.get_xdata()[0], line.get_ydata()[0])) for line in axes.lines]
    assert len(boxes) == 7
    for index, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[index + 1 :])
        assert not any(box.contains(*point) for point in points)
