"""The figures of an experiment's report, each drawn from the files that the stages wrote."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch, Patch
from matplotlib.ticker import PercentFormatter

from planer.config.variant import parse_variant
from planer.evaluation.comparison import chosen_row, headline, pick
from planer.latency.table import LatencyTable
from planer.report.drawing import (
    GRID,
    INK,
    MUTED,
    SURFACE,
    label_points,
    new_figure,
    option_number,
    series_look,
    style,
    workload_text,
)
from planer.report.latency_figures import block_latencies, routings
from planer.specs import kinds

UNITS = {"bpc": "bits per character", "ppl": "perplexity"}
FAMILIES = {
    "baseline": ("D", INK),
    "pattern": ("s", "#e69f00"),
    "searched": ("o", "#0072b2"),
    "shared supernet": ("P", "#009e73"),
    "baseline trained on": ("d", "#8b97a3"),
    "shallow control": ("p", "#5c6875"),
    "random control": ("X", "#8b97a3"),
    "LTS control": ("^", "#cc79a7"),
    "from random weights": ("v", "#d55e00"),
}
"""Marker and colour of a variant, by the origin of its block order or of its initial weights."""
METHODS = {
    "baseline": "baseline",
    "continued": "baseline trained on",
    "shallow": "shallow control",
    "shared": "shared supernet",
    "random": "random control",
    "lts": "LTS control",
}
"""Family of a variant's method; the others are patterns or searched."""

WORST_SHOWN = 1.3
"""The sweep shows quality up to this multiple of the best; thresholds beyond are in the report's table."""


def draw(evaluations: Sequence[dict], table: LatencyTable, additivity: dict) -> dict[str, Figure]:
    """All figures by name; one whose data no variant has is left out."""
    with style():
        figures = {
            "quality_latency": quality_latency(evaluations),
            "architectures": architectures(evaluations),
            "block_latencies": block_latencies(table),
            "routings": routings(table),
            "estimated_measured": estimated_measured(evaluations, additivity),
            "dynamic_k": dynamic_k(evaluations),
        }
    return {name: figure for name, figure in figures.items() if figure is not None}


def quality_latency(evaluations: Sequence[dict]) -> Figure | None:
    """Test quality against measured latency, one point per variant; the baseline's values are thin lines."""
    points = []
    for evaluation in evaluations:
        row, unit = headline(evaluation), pick(evaluation, "quality", "unit")
        value = pick(evaluation, "quality", "final", "test", unit)
        if row is not None and value is not None:
            points.append((row["median_ms"], value, evaluation["variant"], _family(evaluation), row))
    if not points:
        return None
    figure, (axes,) = new_figure(4.2)
    for x, y, variant, family, row in points:
        marker, colour = FAMILIES[family]
        spread = [[x - row["p10_ms"]], [row["p90_ms"] - x]]
        axes.errorbar(x, y, xerr=spread, ecolor=colour, elinewidth=1, alpha=0.45, zorder=2)
        axes.plot(x, y, marker, color=colour, markersize=7, markeredgecolor=SURFACE, markeredgewidth=0.8, zorder=3)
        if variant == "baseline":
            axes.axvline(x, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
            axes.axhline(y, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    axes.margins(0.14)
    axes.set_xlim(left=0)
    axes.set_xlabel(f"latency of one call in ms, p10 to p90 ({workload_text(points[0][4])})")
    axes.set_ylabel(f"test {UNITS[unit]} (lower is better)")
    handles = _family_handles([family for _, _, _, family, _ in points])
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles), handletextpad=0.2)
    spans = [(row["p10_ms"], row["p90_ms"], y) for _, y, _, _, row in points]
    label_points(axes, [point[:3] for point in points], spans)
    return figure


def architectures(evaluations: Sequence[dict]) -> Figure | None:
    """Each network as a row of blocks from embedding to head; attention is as high as it has heads."""
    networks = [(e["variant"], pick(e, "architecture", "blocks")) for e in evaluations]
    networks = [(variant, blocks) for variant, blocks in networks if blocks]
    if not networks:
        return None
    figure, (axes,) = new_figure(0.75 + 0.42 * len(networks))
    numbers = (option_number(b["option"]) for _, blocks in networks for b in blocks if kinds()[b["kind"]].has_heads)
    heads = max(numbers, default=1)
    for row, (_, blocks) in enumerate(networks):
        for position, block in enumerate(blocks):
            kind = kinds()[block["kind"]]
            number = option_number(block["option"]) if kind.has_heads else 0
            share = number / heads if number else 1
            height = 0.44 + 0.36 * share
            axes.add_patch(_block(position, row, height, kind.colour))
            text = "" if kind.identity else block["symbol"]
            axes.text(position, row, text, ha="center", va="center", fontsize=7.5, color=kind.text_colour)
    width = max(len(blocks) for _, blocks in networks)
    axes.set(xlim=(-0.6, width - 0.4), ylim=(len(networks) - 0.4, -0.6))
    axes.set_yticks(range(len(networks)), [variant for variant, _ in networks])
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    shown = {block["kind"] for _, blocks in networks for block in blocks}
    handles = [Patch(facecolor=spec.colour, label=spec.label) for kind, spec in kinds().items() if kind in shown]
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles), handlelength=1)
    return figure


def estimated_measured(evaluations: Sequence[dict], additivity: dict) -> Figure | None:
    """Measured latency against the sum of table entries, and its error: random networks and the variants.

    Sums are scaled to the device's speed during each measurement: by stacks of blocks that were timed with the random
    networks, and by the baseline that was timed with a variant.
    """
    rows = [(e["variant"], _family(e), headline(e)) for e in evaluations]
    chosen = [
        (row["table_ms"] * row["baseline_median_ms"] / row["baseline_table_ms"], row["median_ms"], variant, family)
        for variant, family, row in rows
        if row is not None
    ]
    networks = [row for row in additivity["networks"] if row["name"] != "baseline"]
    random = [(row["estimated_ms"], row["measured_ms"]) for row in networks]
    if not chosen and not random:
        return None
    figure, (left, right) = new_figure(3.8, columns=2, width_ratios=(2, 3))
    values = [value for point in chosen + random for value in point[:2]]
    low, high = 0.9 * min(values), 1.08 * max(values)
    band = {"color": GRID, "alpha": 0.6, "zorder": 1, "linewidth": 0}
    left.fill_between([low, high], [0.95 * low, 0.95 * high], [1.05 * low, 1.05 * high], **band)
    left.plot([low, high], [low, high], color=MUTED, linewidth=0.9, zorder=2)
    right.axhspan(-0.05, 0.05, **band)
    right.axhline(0, color=MUTED, linewidth=0.9, zorder=2)
    for axes, shown in ((left, lambda estimated, measured: measured), (right, _error)):
        for estimated, measured in random:
            axes.plot(estimated, shown(estimated, measured), "o", color=MUTED, markersize=3.5, alpha=0.7, zorder=3)
        for estimated, measured, _, family in chosen:
            marker, colour = FAMILIES[family]
            look = {"color": colour, "markersize": 6.5, "markeredgecolor": SURFACE, "markeredgewidth": 0.8}
            axes.plot(estimated, shown(estimated, measured), marker, zorder=4, **look)
        axes.set_xlim(low, high)
        axes.set_xlabel("sum of table entries in ms, scaled")
    left.set_ylim(low, high)
    left.set_ylabel("measured latency in ms")
    worst = max(abs(_error(*point[:2])) for point in chosen + random)
    right.set_ylim(-1.25 * max(worst, 0.05), 1.25 * max(worst, 0.05))
    right.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0 if worst > 0.02 else 1))
    right.set_ylabel("error of the estimate, of measured latency")
    handles = [Line2D([], [], marker="o", color=MUTED, markersize=4, linestyle="", label="random networks")]
    handles += _family_handles([family for _, _, _, family in chosen])
    handles.append(Patch(facecolor=GRID, alpha=0.6, label="within 5 %"))
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles), handletextpad=0.3)
    dots = [(estimated, estimated, _error(estimated, measured)) for estimated, measured in random]
    label_points(right, [(e, _error(e, m), variant) for e, m, variant, _ in chosen], dots)
    return figure


def _error(estimated: float, measured: float) -> float:
    """As in additivity.json: above 0 when the estimate is too long."""
    return estimated / measured - 1


def dynamic_k(evaluations: Sequence[dict]) -> Figure | None:
    """The threshold sweep: test quality against executed FLOPs of the converted layers, and against latency."""
    converted = [e for e in evaluations if pick(e, "conversion", "converted_layers")]
    if not converted:
        return None
    unit = converted[0]["quality"]["unit"]
    figure, (left, right) = new_figure(4.0, columns=2, sharey=True)
    handles = []
    for index, evaluation in enumerate(converted):
        look = series_look(index)
        rows, chosen = evaluation["dynamic_k"], chosen_row(evaluation)
        values = [row["test"][unit] for row in rows]
        flops = [row["converted_flops_ratio"] for row in rows]
        latency = [row["latency"]["median_ms"] for row in rows]
        dense_latency = evaluation["conversion"]["dense_latency"]["median_ms"]
        dense_value = evaluation["quality"]["final"]["test"][unit]
        for axes, costs, dense_cost in ((left, flops, 1.0), (right, latency, dense_latency)):
            axes.plot(costs, values, **look, markersize=3.5, linewidth=1.3, zorder=3)
            star = {"markersize": 10, "markeredgecolor": SURFACE, "markeredgewidth": 0.8}
            axes.plot(dense_cost, dense_value, "*", color=look["color"], zorder=4, **star)
            if chosen is not None:
                at = rows.index(chosen)
                axes.plot(costs[at], values[at], "o", fillstyle="none", color=INK, markersize=8, zorder=5)
        name = evaluation["variant"] + (f", \u03c4 = {chosen['tau']:g}" if chosen is not None else "")
        handles.append(Line2D([], [], **look, markersize=3.5, label=name))
    star = {"marker": "*", "color": MUTED, "markersize": 9, "label": "dense network"}
    ring = {"marker": "o", "color": INK, "markersize": 8, "fillstyle": "none", "label": "chosen threshold"}
    handles += [Line2D([], [], linestyle="", **look) for look in (star, ring)]
    figure.legend(handles=handles, loc="outside upper left", ncols=min(len(handles), 4))
    _limit_quality(left, converted, unit)
    left.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    for axes in (left, right):
        axes.set_xlim(left=0)
    left.set_ylabel(f"test {UNITS[unit]} (lower is better)")
    left.set_xlabel("executed FLOPs of converted layers")
    right.set_xlabel(f"latency of one call in ms ({headline(converted[0])['attention']} attention)")
    return figure


def _limit_quality(axes: Axes, converted: Sequence[dict], unit: str) -> None:
    """Leave out thresholds of very poor quality, and say how many."""
    dense = [e["quality"]["final"]["test"][unit] for e in converted]
    values = dense + [row["test"][unit] for e in converted for row in e["dynamic_k"]]
    highest = WORST_SHOWN * min(dense)
    top = min(max(values), highest)
    margin = 0.06 * (top - min(values)) or 0.01 * top
    axes.set_ylim(min(values) - margin, top + margin)
    beyond = sum(value > top for value in values)
    if beyond:
        place = {"xycoords": "axes fraction", "textcoords": "offset points", "ha": "right", "va": "top"}
        text = f"{beyond} rows are above, see the table"
        axes.annotate(text, (1, 1), (-2, -4), fontsize=7.5, color=MUTED, **place)


def _block(position: int, row: int, height: float, colour: str) -> FancyBboxPatch:
    return FancyBboxPatch(
        (position - 0.44, row - height / 2), 0.88, height,
        boxstyle="round,pad=0,rounding_size=0.1", facecolor=colour, linewidth=0,
    )  # fmt: skip


def _family_handles(families: Sequence[str]) -> list[Line2D]:
    looks = [(name, marker, colour) for name, (marker, colour) in FAMILIES.items() if name in families]
    return [Line2D([], [], marker=marker, color=colour, linestyle="", label=name) for name, marker, colour in looks]


def _family(evaluation: dict) -> str:
    variant = parse_variant(evaluation["variant"])
    if variant.scratch and variant.method != "baseline":
        return "from random weights"
    return METHODS.get(variant.method, "pattern" if variant.pattern else "searched")
