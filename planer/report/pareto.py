"""The report's section and figure on one supernet for many latency targets."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from planer.evaluation.pareto import SEARCHES
from planer.report.drawing import MUTED, SERIES_COLOURS, SERIES_MARKERS, SURFACE, label_points, new_figure, style
from planer.report.figures import UNITS
from planer.report.page import cell, section, table

SHOWN = (("test", ".3f"), ("measured", ".3f"), ("search_seconds", ".0f"))
"""Numbers of a trained network in the report, and their formats."""


def pareto_section(report: dict) -> dict:
    """The report's section on pareto.json: the better search, and the costs."""
    totals, unit = report["totals"], report["unit"]
    wins, tests = totals["wins"], totals["mean_test"]
    chosen = [
        [
            f"{row['target']:g}",
            row["pattern"],
            f"{row['estimated']:.3f}",
            cell(row["supernet_nll"], "{:.3f}".format),
            {True: "yes", False: "no", None: "unknown"}[row["on_front"]],
        ]
        for row in report["targets"]
    ]
    trained = [
        [
            f"{row['target']:g}",
            *(f"{row[search][key]:{show}}" for key, show in SHOWN for search in SEARCHES),
            row["winner"],
        ]
        for row in report["compared"]
    ]
    columns = [
        f"{figure}, {search}" for figure in (f"test {unit}", "measured", "search seconds") for search in SEARCHES
    ]
    return section(
        "One supernet for many targets",
        (
            f"The search of {report['supernet']} served {totals['targets']} targets with its supernet; for "
            f"{totals['compared']} of them the network was compared with that of a search at the target itself. The "
            f"one chosen with the shared supernet was better {wins['shared']} times, the separate search's "
            f"{wins['separate']} times, equal {wins['same']} times; mean test {unit} {tests['shared']:.3f} against "
            f"{tests['separate']:.3f}. For all targets the shared search takes "
            f"{totals['shared_search_seconds']:.0f} s, separate searches about "
            f"{totals['separate_search_seconds_all_targets']:.0f} s. {report['rule']}"
        ),
        "pareto",
        table(["target", *columns, "better"], trained),
        table(
            ["target", "blocks", "estimated", "supernet nll", "on the front"],
            chosen,
            text=("target", "blocks"),
            title="Networks chosen with the shared supernet",
        ),
    )


@style()
def pareto_figure(report: dict) -> Figure:
    """The supernet's loss over table latency for all targets, and test quality over measured latency of both searches.

    The first panel is left out when networks were chosen without the supernet's loss.
    """
    rows = [row for row in report["targets"] if row["supernet_nll"] is not None]
    figure, panels = new_figure(3.8, columns=2 if rows else 1)
    if rows:
        _draw_front(panels[0], rows)
    _draw_trained(panels[-1], report)
    figure.legend(handles=_handles(rows), loc="outside upper left", ncols=4, handletextpad=0.3)
    if rows:
        points = [(row["estimated"], row["supernet_nll"], f"{row['target']:g}") for row in rows]
        steps = itertools.pairwise(_front(rows))
        label_points(panels[0], points, [(x, end, y) for (x, y), (end, _) in steps])
    ends = {_point(row[search]): row for row in report["compared"] for search in SEARCHES}
    both = {end: " (both)" if _point(row["shared"]) == _point(row["separate"]) else "" for end, row in ends.items()}
    label_points(panels[-1], [(*end, f"{row['target']:g}{both[end]}") for end, row in ends.items()])
    return figure


def _draw_front(axes: Axes, rows: Sequence[dict]) -> None:
    for row in rows:
        _dot(axes, row["estimated"], row["supernet_nll"], "shared", hollow=not row["on_front"])
    axes.step(*zip(*_front(rows), strict=True), where="post", color=SERIES_COLOURS[0], linewidth=1, alpha=0.6, zorder=2)
    axes.margins(0.14)
    axes.set_xlabel("table latency over the baseline's")
    axes.set_ylabel("supernet's validation loss in nats per token")


def _front(rows: Sequence[dict]) -> list[tuple[float, float]]:
    """Latencies and losses of the networks on the front, from left to right."""
    return sorted((row["estimated"], row["supernet_nll"]) for row in rows if row["on_front"])


def _point(network: dict) -> tuple[float, float]:
    """Coordinates of a trained network in the figure."""
    return network["measured"], network["test"]


def _draw_trained(axes: Axes, report: dict) -> None:
    for row in report["compared"]:
        ends = [_point(row[search]) for search in SEARCHES]
        axes.plot(*zip(*ends, strict=True), color=MUTED, linewidth=0.8, zorder=1)
        for search, end in zip(SEARCHES, ends, strict=True):
            _dot(axes, *end, search)
    axes.margins(0.14)
    axes.set_xlabel("measured latency over the baseline's")
    axes.set_ylabel(f"test {UNITS[report['unit']]} (lower is better)")


def _look(search: str, hollow: bool = False) -> dict:
    number = list(SEARCHES).index(search)
    colour = SERIES_COLOURS[number]
    ground = {"markerfacecolor": SURFACE, "markeredgecolor": colour} if hollow else {"markeredgecolor": SURFACE}
    return {"marker": SERIES_MARKERS[number], "color": colour, "linestyle": "", "markersize": 7, **ground}


def _dot(axes: Axes, x: float, y: float, search: str, hollow: bool = False) -> None:
    axes.plot(x, y, markeredgewidth=1.2 if hollow else 0.8, zorder=3, **_look(search, hollow))


def _handles(rows: Sequence[dict]) -> list[Line2D]:
    handles = [Line2D([], [], label=label, **_look(search)) for search, label in SEARCHES.items()]
    if any(not row["on_front"] for row in rows):
        handles.append(Line2D([], [], label="another is as fast and better", **_look("shared", hollow=True)))
    return handles
