"""Figures of the latency table: what every block costs, and mixtures of experts under uneven loads."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from planer.latency.routings import ROUTINGS
from planer.latency.table import LatencyTable
from planer.report.drawing import (
    EMBEDDING_COLOUR,
    INK,
    MUTED,
    SURFACE,
    new_figure,
    option_number,
    workload_text,
)
from planer.specs import EMBEDDING_AND_HEAD, kind_of, kinds

LOADS = {"balanced": "balanced", "skewed": "like a trained router", "one": "all to the same experts"}
"""Names in figures of the routings of planer/latency/routings.py."""


def block_latencies(table: LatencyTable) -> Figure | None:
    """Cost of each option by the latency table, cached beside recomputed attention, with p10 to p90."""
    rows = table.headline_rows
    rows = rows[rows["median_ms"] > 0]
    options = list(dict.fromkeys(sorted(rows["option"], key=_option_order)))
    modes = [mode for mode in ("cached", "recompute") if mode in set(rows["attention"])]
    if not options:
        return None
    figure, (axes,) = new_figure(0.9 + 0.42 * len(options))
    thickness = 0.8 / len(modes)
    digits = max(0, 2 - math.floor(math.log10(rows["median_ms"].max())))
    for index, mode in enumerate(modes):
        per_option = rows[rows["attention"] == mode].set_index("option")
        for position, option in enumerate(options):
            if option not in per_option.index:
                continue
            cost = per_option.loc[option]
            place = position + (index - (len(modes) - 1) / 2) * thickness
            look = {"hatch": "////", "alpha": 0.55} if mode == "recompute" else {}
            colour = EMBEDDING_COLOUR if option == EMBEDDING_AND_HEAD else kind_of(option).colour
            axes.barh(place, cost["median_ms"], 0.88 * thickness, color=colour, edgecolor=SURFACE, linewidth=0, **look)
            _spread(axes, place, cost, f"{cost['median_ms']:.{digits}f}")
    _name_options(axes, options, rows)
    handles = [Patch(facecolor=MUTED, label="cached attention")]
    handles.append(Patch(facecolor=MUTED, edgecolor=SURFACE, hatch="////", alpha=0.55, label="recomputed attention"))
    handles = [handle for handle, mode in zip(handles, ("cached", "recompute"), strict=True) if mode in modes]
    figure.legend(handles=handles, loc="outside upper left", ncols=2, handlelength=1.4)
    return figure


def routings(table: LatencyTable) -> Figure | None:
    """Cost of each mixture of experts beside that of a dense layer, under even and uneven loads, with p10 to p90."""
    rows = table.workload_rows
    options = sorted(set(rows.loc[rows["routing"] != ROUTINGS[0], "option"]), key=_option_order)
    if not options:
        return None
    figure, (axes,) = new_figure(0.9 + 0.75 * len(options))
    thickness = 0.8 / len(ROUTINGS)
    shades = {routing: {"alpha": 1 - 0.3 * i} for i, routing in enumerate(ROUTINGS)}
    for place, option in enumerate(options):
        colour = kind_of(option).colour
        for index, routing in enumerate(ROUTINGS):
            cost = rows[(rows["option"] == option) & (rows["routing"] == routing)].iloc[0]
            height = place + (index - (len(ROUTINGS) - 1) / 2) * thickness
            axes.barh(height, cost["median_ms"], 0.88 * thickness, linewidth=0, color=colour, **shades[routing])
            _spread(axes, height, cost, f"{cost['median_ms']:#.3g}")
    dense = rows[rows["option"].isin({kind_of(option).starts_from for option in options})]
    for cost in dense.drop_duplicates("option")["median_ms"]:
        axes.axvline(cost, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    _name_options(axes, options, rows)
    colour = kind_of(options[0]).colour
    handles = [Patch(label=LOADS[routing], color=colour, **shades[routing]) for routing in ROUTINGS]
    figure.legend(handles=handles, loc="outside upper left", ncols=len(ROUTINGS), handlelength=1.4)
    return figure


def _spread(axes: Axes, height: float, cost: pd.Series, text: str) -> None:
    """A line from p10 to p90 over a bar, with a text at its end."""
    axes.plot([cost["p10_ms"], cost["p90_ms"]], [height, height], color=INK, linewidth=1.1)
    end = max(cost["median_ms"], cost["p90_ms"], 0)
    axes.annotate(text, (end, height), (4, 0), textcoords="offset points", va="center", fontsize=7.5)


def _name_options(axes: Axes, options: list[str], rows: pd.DataFrame) -> None:
    """Options from top to bottom on the y axis, and the workload of the rows below the x axis."""
    axes.set_yticks(range(len(options)), [_option_label(option) for option in options])
    axes.invert_yaxis()
    axes.margins(x=0.08)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(f"latency of one block in ms, p10 to p90 ({workload_text(rows.iloc[0])})")


def _option_order(option: str) -> tuple[int, int]:
    """Embedding and head last."""
    kind = len(kinds()) if option == EMBEDDING_AND_HEAD else list(kinds()).index(kind_of(option).kind)
    return kind, option_number(option)


def _option_label(option: str) -> str:
    return "embedding and head" if option == EMBEDDING_AND_HEAD else kind_of(option).option_label(option_number(option))
