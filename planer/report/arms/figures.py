"""Figures of a pretrained experiment: quality over FLOPs and over time, and executed shares of layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from planer.evaluation.arms.summary import call_of, chosen_row, same
from planer.report.arms.verdict import label
from planer.report.drawing import (
    BLUE,
    GRID,
    INK,
    MUTED,
    colour_key,
    new_figure,
    scale,
    series_look,
    style,
)

FIGURES = {
    "quality_flops": "Test quality over FLOPs of the network and of its converted layers, one line per arm",
    "quality_time": "Test quality over measured time, one line per arm, one panel per batch and phase",
    "executed": "How many tokens execute which share of each layer, one panel per arm",
}
"""Figures and their text alternatives."""

WORST_SHOWN = 0.1
"""Rows whose quality is worse than the reference's by more than this share are in tables only."""


def draw(evaluations: Sequence[dict]) -> dict[str, Figure]:
    """All figures by name; one whose data no arm has is left out."""
    with style():
        figures = {
            "quality_flops": quality_flops(evaluations),
            "quality_time": quality_time(evaluations),
            "executed": executed(evaluations),
        }
    return {name: figure for name, figure in figures.items() if figure is not None}


def _series(evaluations: Sequence[dict]) -> list[tuple[str, dict, list[dict]]]:
    """Name, look and rows of every line: an arm's selector, sorted by FLOPs; bounds are dotted, in grey."""
    found = []
    for evaluation in evaluations:
        for key in dict.fromkeys((row["bound"], row["selector"]) for row in evaluation["rows"]):
            rows = [row for row in evaluation["rows"] if (row["bound"], row["selector"]) == key]
            if key[1] != "all":
                found.append((evaluation["variant"], key, sorted(rows, key=lambda row: row["network_ratio"])))
    own = [(variant, key) for variant, key, _ in found if not key[0]]
    lines = []
    for variant, (bound, selector), rows in found:
        if bound:
            look = {"color": MUTED, "linestyle": ":", "marker": "^" if bound == "oracle" else "v"}
        else:
            look = series_look(own.index((variant, (bound, selector))))
        lines.append((f"bound: {bound}" if bound else f"{variant}, {selector}", look, rows))
    return lines


def quality_flops(evaluations: Sequence[dict]) -> Figure | None:
    """The test measure against FLOPs over the dense network's, and of the converted layers over the dense ones'."""
    lines = _series(evaluations)
    if not lines:
        return None
    metric = evaluations[0]["task"]["metric"]
    figure, panels = new_figure(4.4, columns=2, sharey=True)
    for axes, key in zip(panels, ("network_ratio", "feed_forward_ratio"), strict=True):
        for _, look, rows in lines:
            values = [row["test"][metric] for row in rows]
            axes.plot([row[key] for row in rows], values, **look, markersize=3.5, linewidth=1.2, zorder=3)
        for row in filter(None, map(chosen_row, evaluations)):
            axes.plot(row[key], row["test"][metric], "o", fillstyle="none", color=INK, markersize=8, zorder=5)
        _dense(axes, evaluations)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    panels[0].set_xlabel("FLOPs of the network, of the dense one's")
    panels[1].set_xlabel("FLOPs of the converted layers, of the dense ones'")
    _finish(figure, panels, evaluations, lines)
    return figure


def quality_time(evaluations: Sequence[dict]) -> Figure | None:
    """The test measure against time over the dense network's, measured in turn with it."""
    timed = [entry for evaluation in evaluations for entry in evaluation["latency"] if entry["selector"] != "dense"]
    if not timed:
        return None
    metric = evaluations[0]["task"]["metric"]
    calls = list(dict.fromkeys(map(call_of, timed)))
    columns = min(len(calls), 2)
    height = -(-len(calls) // columns)
    figure, panels = new_figure(1.2 + 3 * height, height, columns, sharey=True)
    lines = [(name, look, rows) for name, look, rows in _series(evaluations) if not rows[0]["bound"]]
    latency = {e["variant"]: e["latency"] for e in evaluations}
    shown = []
    for axes, title in zip(panels, calls, strict=False):
        for name, look, rows in lines:
            points = list(_timed(rows, latency[name.split(", ")[0]], title))
            if points:
                shown.append((name, look, rows))
                values = [row["test"][metric] for row, _ in points]
                times = [1 / entry["speed_up"] for _, entry in points]
                axes.plot(times, values, **look, markersize=3.5, linewidth=1.2, zorder=3)
        _dense(axes, evaluations)
        axes.axvline(1, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
        axes.set_xlim(left=0)
        axes.set_title(title)
        axes.set_xlabel("time, of the dense network's")
    for axes in panels[len(calls) :]:
        axes.set_visible(False)
    _finish(figure, panels, evaluations, shown)
    return figure


def _timed(rows: Sequence[dict], latency: Sequence[dict], call: str) -> Iterator[tuple[dict, dict]]:
    """Rows that were timed in this call, with their latency."""
    for row in rows:
        entry = next((entry for entry in latency if call_of(entry) == call and same(entry, row)), None)
        if entry is not None:
            yield row, entry


def _references(evaluations: Sequence[dict]) -> dict[str, dict]:
    """Evaluations that have the references of converted arms, by the names of the references."""
    return {e["reference"]["variant"]: e for e in evaluations if e["method"] != "dense"}


def _look(number: int) -> dict:
    """The star of a reference."""
    return {"marker": "*", "color": INK, "linestyle": "", "fillstyle": "none" if number else "full"}


def _dense(axes: Axes, evaluations: Sequence[dict]) -> None:
    """The references' points, and the lines down to which quality counts as kept."""
    for number, evaluation in enumerate(_references(evaluations).values()):
        task = evaluation["task"]
        value = evaluation["reference"]["test"][task["metric"]]
        sign = 1 if task["better"] == "lower" else -1
        axes.axhline(value * (1 + sign * evaluation["tolerance"]), color=GRID, linewidth=1.2, zorder=1)
        axes.plot(1, value, **_look(number), markersize=9, zorder=4)


def _finish(figure: Figure, panels: Sequence[Axes], evaluations: Sequence[dict], lines: Sequence[tuple]) -> None:
    """The common axis of quality, and the legend."""
    task, references = evaluations[0]["task"], _references(evaluations)
    dense = [evaluation["reference"]["test"][task["metric"]] for evaluation in references.values()]
    values = [*dense, *(row["test"][task["metric"]] for _, _, rows in lines for row in rows)]
    loosest = max(dense) if task["better"] == "lower" else min(dense)
    worst = loosest * (1 + WORST_SHOWN * (1 if task["better"] == "lower" else -1))
    shown = [value for value in values if (value <= worst) == (task["better"] == "lower") or value == worst]
    margin = 0.06 * (max(shown) - min(shown)) or 0.01 * abs(loosest)
    panels[0].set_ylim(min(shown) - margin, max(shown) + margin)
    unit = f" in {task['unit']}" if task["unit"] else ""
    panels[0].set_ylabel(f"test {task['title']}{unit} ({task['better']} is better)")
    looks = {name: look | {"markersize": 3.5} for name, look, _ in lines}
    looks |= {name: _look(number) | {"markersize": 9} for number, name in enumerate(references)}
    handles = [Line2D([], [], **look, label=name) for name, look in looks.items()]
    figure.legend(handles=handles, loc="outside upper left", ncols=min(len(handles), 3))


def executed(evaluations: Sequence[dict]) -> Figure | None:
    """For the chosen row of every arm: layers from bottom to top, executed share to the right, tokens as colour."""
    shown = [(e["variant"], row) for e in evaluations if (row := chosen_row(e)) is not None]
    if not shown:
        return None
    columns = min(len(shown), 3)
    height = -(-len(shown) // columns)
    figure, panels = new_figure(1 + 2.4 * height, height, columns)
    top = max(share for _, row in shown for layer in row["layers"] for share in layer["histogram"])
    for axes, (variant, row) in zip(panels, shown, strict=False):
        shares = np.asarray([layer["histogram"] for layer in row["layers"]])
        edges = np.linspace(0, 1, shares.shape[1] + 1)
        mesh = axes.pcolormesh(edges, np.arange(len(shares) + 1), shares, cmap=scale(BLUE), vmin=0, vmax=top)
        axes.set_title(f"{variant}, {label(row)}", fontsize=8)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_xlabel("executed share of the layer")
        axes.set_ylabel("converted layer")
        axes.grid(False)
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    colour_key(figure, mesh, panels[: len(shown)], "share of the real tokens")
    return figure
