"""arms.html: all arms of a pretrained experiment on one self-contained page."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

from planer.evaluation.arms.summary import call_of, chosen_row
from planer.files import write_text
from planer.pretrained.describe import selected
from planer.report.arms import verdict
from planer.report.arms.figures import FIGURES, draw
from planer.report.drawing import inline, to_svg
from planer.report.page import cell, count, environment, milliseconds, section, table


def write_arms(path: str | Path, evaluations: Sequence[dict]) -> None:
    """Write the page.  evaluations: contents of the arms' eval.json, in the order wanted, at least one."""
    write_text(path, render(evaluations))


def render(evaluations: Sequence[dict]) -> str:
    """The page as text.  The same evaluations give the same bytes."""
    figures = {name: to_svg(figure) for name, figure in draw(evaluations).items()}
    sections = [*_sections(), _latencies(evaluations), *map(_rows, evaluations), _provenance(evaluations)]
    return (
        environment(Path(__file__).parent)
        .get_template("arms.html.jinja")
        .render(
            experiment=evaluations[0]["experiment"],
            setting=_setting(evaluations[0]),
            verdicts=[(e["variant"], verdict.quality(e), verdict.time(e)) for e in evaluations],
            comparisons=verdict.against_moefication(evaluations),
            rules=verdict.rules(evaluations[0]),
            summary=_summary(evaluations),
            costs=_costs(evaluations[0]["flops"]),
            sections=[part for part in sections if part["figure"] in figures or any(t["rows"] for t in part["tables"])],
            figures={name: inline(svg, name, html.escape(FIGURES[name])) for name, svg in figures.items()},
        )
    )


def _setting(evaluation: dict) -> str:
    network, task, made = evaluation["network"], evaluation["task"], evaluation["provenance"]
    gated = "gated, " if network["gated"] else ""
    return (
        f"{network['model_type']}, {count(network['params'])} parameters, {network['layers']} feed-forward layers of "
        f"{network['d_inner']} neurons ({gated}{network['activation']}). {task['title'].capitalize()} of "
        f"{task['samples']:,} test samples, {task['tokens']:,} tokens. {made['device']}, {made['dtype']}, "
        f"{made['threads']} threads."
    )


def _costs(flops: dict) -> str:
    """Where the dense network's FLOPs go: arms save those of feed-forward layers, and of replaced projections."""
    parts = {name.replace("_", "-"): value for name, value in flops.items() if name != "total"}
    shares = ", ".join(f"{name} {value / flops['total']:.1%}" for name, value in parts.items())
    return f"The dense network takes {count(flops['total'])} FLOPs per token: {shares}."


def _summary(evaluations: Sequence[dict]) -> dict:
    """One line per arm: its chosen row."""
    metric = evaluations[0]["task"]["metric"]
    title = f"test {metric}"
    columns = ["arm", f"{title}, nothing skipped", "chosen", title, "reference", "difference", "executed"]
    columns += ["FLOPs of layers"]
    columns += ["network FLOPs", "FLOPs/token"]
    rows = []
    for evaluation in evaluations:
        row = chosen_row(evaluation) or {}
        rows.append(
            [
                evaluation["variant"],
                f"{evaluation['quality']['test'][metric]:.4f}",
                verdict.label(row) if row else cell(None, str),
                cell(row.get("test", {}).get(metric), "{:.4f}".format),
                evaluation["reference"]["variant"],
                verdict.interval(row["difference"] if row else evaluation["difference"]),
                cell(row.get("executed_share"), "{:.0%}".format),
                cell(row.get("feed_forward_ratio"), "{:.0%}".format),
                cell(row.get("network_ratio"), "{:.0%}".format),
                count(row.get("network_flops", evaluation["flops"]["total"])),
            ]
        )
    marks = [evaluation["method"] == "dense" for evaluation in evaluations]
    return table(columns, rows, text=("arm", "chosen", "reference"), marks=marks)


def _sections() -> list[dict]:
    return [
        section(
            "Quality against FLOPs",
            "FLOPs per real token by the rules of selection, routers and comparisons included. Stars are references, "
            "grey lines their limits of kept quality; circles mark chosen rows. Dotted lines are bounds: experts at "
            "random, and experts chosen by their true norms, which no router knows.",
            "quality_flops",
        ),
        section(
            "Quality against measured time",
            "Every arm was measured alternately with the dense network; left of the dashed line it is faster.",
            "quality_time",
        ),
        section(
            "Executed shares",
            "How the tokens of the test split differ in what they execute, at the chosen row of each arm.",
            "executed",
        ),
    ]


def _latencies(evaluations: Sequence[dict]) -> dict:
    rows = [
        [
            evaluation["variant"],
            call_of(entry),
            f"{entry['tokens']}",
            entry["selector"] if entry["value"] is None else selected(entry["selector"], entry["value"]),
            cell(entry["dense_layers"], str),
            milliseconds(entry["median_ms"]),
            f"{milliseconds(entry['p10_ms'])} to {milliseconds(entry['p90_ms'])}",
            verdict.speed_up(entry),
        ]
        for evaluation in evaluations
        for entry in evaluation["latency"]
    ]
    columns = ["arm", "call", "tokens", "selector", "dense layers", "ms", "p10 to p90", "speed"]
    text = (
        "Median of one call. The speed is the median over rounds of the dense network's time over the arm's. Dense "
        "layers ran all their experts or neurons, since leaving some out saves no time there. Quality and FLOPs of a "
        "row are those of leaving them out in all layers."
    )
    return section("Latency", text, "", table(columns, rows, text=("arm", "call", "selector"), title="All calls"))


def _rows(evaluation: dict) -> dict:
    """All rows of an arm."""
    metrics, chosen = list(evaluation["quality"]["test"]), chosen_row(evaluation)
    metric = evaluation["task"]["metric"]
    columns = ["selector", f"valid {metric}", *(f"test {name}" for name in metrics), "difference", "executed"]
    columns += ["FLOPs of layers", "network FLOPs"]
    rows = [
        [
            verdict.label(row),
            cell((row["valid"] or {}).get(metric), "{:.4f}".format),
            *(f"{row['test'][name]:.4f}" for name in metrics),
            verdict.interval(row["difference"]),
            f"{row['executed_share']:.1%}",
            f"{row['feed_forward_ratio']:.1%}",
            f"{row['network_ratio']:.1%}",
        ]
        for row in evaluation["rows"]
    ]
    marks = [row is chosen for row in evaluation["rows"]]
    grid = table(columns, rows, text=("selector",), title="All selectors and values", marks=marks)
    return section(f"Arm {evaluation['variant']}", "FLOPs over those of the dense network.", "", grid)


def _provenance(evaluations: Sequence[dict]) -> dict:
    columns = ["arm", "commit", "device", "dtype", "threads", "seed", "evaluation took"]
    rows = [
        [e["variant"], *(str(e["provenance"][key]) for key in ("git_commit", "device", "dtype", "threads", "seed"))]
        + [f"{e['provenance']['seconds']:.0f} s"]
        for e in evaluations
    ]
    return section("Provenance", "Where the numbers come from.", "", table(columns, rows, text=columns[:4]))
