"""How figures look: colours, type, labels that keep apart, and SVG that follows a page's light or dark theme.

Colours of block kinds and of variants come from Okabe and Ito's set, which colour-blind readers can tell apart
(https://jfly.uni-koeln.de/color/).  Every drawing of the same data is byte for byte the same.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap, LinearSegmentedColormap, to_rgba
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox

INK, MUTED, GRID, SURFACE = "#1b2530", "#5c6875", "#dfe4e9", "#ffffff"
THEME = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--grid)", SURFACE: "var(--surface)"}
"""Colours that a page replaces by its own, so that a figure reads well on light and on dark ground."""

EMBEDDING_COLOUR = "#8b97a3"
"""Of embedding and head, in figures of blocks."""
BLUE, ORANGE = "#0072b2", "#d55e00"
SERIES_COLOURS = (BLUE, ORANGE, "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8b97a3")
SERIES_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
SERIES_LINES = ("-", "--", ":")

LEVELS = 32
"""Colours of a scale: few enough for its legend to be drawn and not embedded as an image."""

WIDTH = 7.6
"""Inches, of every figure."""

_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.labelsize": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.facecolor": SURFACE,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "text.color": INK,
    "figure.facecolor": SURFACE,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "svg.fonttype": "path",
    "svg.hashsalt": "planer",
}


def style() -> AbstractContextManager:
    """Context in which figures are made and written."""
    return matplotlib.rc_context(_STYLE)


def new_figure(height: float, rows: int = 1, columns: int = 1, **options) -> tuple[Figure, list[Axes]]:
    """Figure of the common width and its axes, without pyplot's global state."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, list(axes.flat)


def series_look(index: int) -> dict[str, str]:
    """Colour, marker and line of one of several lines; no two of the first 21 are the same."""
    lap, place = divmod(index, len(SERIES_COLOURS))
    return {
        "color": SERIES_COLOURS[place],
        "marker": SERIES_MARKERS[(place + lap) % len(SERIES_MARKERS)],
        "linestyle": SERIES_LINES[lap % len(SERIES_LINES)],
    }


def scale(colour: str, below: str = "") -> Colormap:
    """From transparent to a colour, or from one below the middle through transparent to one above it.

    Transparent, so that it reads on light and on dark ground.
    """
    ends = [(0.0, to_rgba(below)), (0.5, to_rgba(below, 0)), (0.5, to_rgba(colour, 0))] if below else []
    ends = ends or [(0.0, to_rgba(colour, 0))]
    return LinearSegmentedColormap.from_list("scale", [*ends, (1.0, to_rgba(colour))], N=LEVELS)


def colour_key(figure: Figure, mesh, panels: Sequence[Axes], label: str, extend: str = "neither") -> None:
    """What the colours of some panels mean, below them."""
    key = figure.colorbar(mesh, ax=list(panels), location="bottom", label=label, extend=extend, aspect=40, pad=0.02)
    key.ax.xaxis.set_major_locator(MaxNLocator(5))
    key.ax.tick_params(labelsize=7)
    key.outline.set_visible(False)


def to_svg(figure: Figure) -> str:
    """The figure as an SVG document without a date."""
    buffer = io.StringIO()
    with style():
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def inline(svg: str, prefix: str, description: str) -> str:
    """An SVG element for an HTML page, from plain description and ``to_svg``.

    Ids get a prefix, because several figures share a page; theme colours become the page's variables; the fixed
    size goes, so that the page scales the drawing.  description must be escaped already.
    """
    element = svg[svg.index("<svg") :]
    opening, rest = element.split(">", 1)
    view = re.search(r'viewBox="[^"]+"', opening)[0]
    rest = re.sub(r"<metadata>.*?</metadata>", "", rest, flags=re.DOTALL)
    rest = re.sub(r'\bid="', f'id="{prefix}-', rest)
    rest = re.sub(r'href="#', f'href="#{prefix}-', rest)
    rest = re.sub(r"url\(#", f"url(#{prefix}-", rest)
    for colour, variable in THEME.items():
        rest = rest.replace(colour, variable)
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {names} {view} role="img" aria-label="{description}">{rest}'


def label_points(
    axes: Axes, points: Iterable[tuple[float, float, str]], spans: Iterable[tuple[float, float, float]] = ()
) -> None:
    """Write a text beside each point (x, y, text) such that texts cover no other text, no point and no span.

    spans: horizontal lines (x from, x to, y) to keep free.  Call it last, when limits and layout are settled.  Each
    text takes the free place nearest to its point, with a thin line to it where it had to go far.
    """
    points = list(points)
    figure = axes.figure
    figure.draw_without_rendering()
    renderer, scale = figure.canvas.get_renderer(), figure.dpi / 72
    places = [axes.transData.transform((x, y)) for x, y, _ in points]
    taken = [Bbox.from_bounds(*(place - 5 * scale), 10 * scale, 10 * scale) for place in places]
    for begin, end, y in spans:
        taken.append(Bbox(axes.transData.transform([(begin, y), (end, y)])).padded(2 * scale))
    inside = axes.get_window_extent(renderer)
    halo = [withStroke(linewidth=2.5, foreground=SURFACE)]
    for (x, y, text), place in zip(points, places, strict=True):
        options = {"textcoords": "offset points", "in_layout": False}
        label = axes.annotate(text, (x, y), (0, 0), fontsize=8.5, va="bottom", path_effects=halo, zorder=6, **options)
        box = label.get_window_extent(renderer)
        offset = min(
            (offset for distance in (7, 14, 24, 36, 50) for offset in _offsets(distance, box, scale)),
            key=lambda offset: _cost(
                _at(place, offset, box, scale), taken, inside, math.hypot(*_anchor(offset, box, scale))
            ),
        )
        label.set_position(offset)
        taken.append(_at(place, offset, box, scale))
        anchor = _anchor(offset, box, scale)
        if max(map(abs, anchor)) > 12:
            line = {"arrowstyle": "-", "color": MUTED, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4}
            axes.annotate("", (x, y), anchor, arrowprops=line, **options)


def _offsets(distance: float, box: Bbox, scale: float) -> list[tuple[float, float]]:
    """Lower left corners, in points from the marker, of texts around it at a distance."""
    width, height = box.width / scale, box.height / scale
    right, left, centre = distance, -distance - width, -width / 2
    level, above, below = -height / 2, distance, -distance - height
    places = [(right, level), (left, level), (centre, above), (centre, below)]
    return places + [(right, above), (left, above), (right, below), (left, below)]


def _at(place, offset: tuple[float, float], box: Bbox, scale: float) -> Bbox:
    return Bbox.from_bounds(place[0] + offset[0] * scale, place[1] + offset[1] * scale, box.width, box.height)


def _cost(box: Bbox, taken: list[Bbox], inside: Bbox, distance: float) -> float:
    """Covered area, then distance: any free place beats any covered one."""
    padded = box.padded(1.5)
    overlap = sum(_area(Bbox.intersection(padded, other)) for other in taken)
    outside = _area(box) - _area(Bbox.intersection(box, inside))
    return 1e3 * (overlap + outside) + distance


def _area(box: Bbox | None) -> float:
    return box.width * box.height if box is not None else 0.0


def _anchor(offset: tuple[float, float], box: Bbox, scale: float) -> tuple[float, float]:
    """Point of the text's edge nearest to the marker."""
    width, height = box.width / scale, box.height / scale
    return min(max(0, offset[0]), offset[0] + width), min(max(0, offset[1]), offset[1] + height)


def option_number(option: str) -> int:
    """4 of attention_4, 2 of moe_top2, 0 of feed_forward."""
    return int("".join(character for character in option if character.isdecimal()) or 0)


def workload_text(row) -> str:
    """Shape of the calls that a row of eval.json or of the latency table timed."""
    tokens = "decoding" if row["execution"] == "decode" else f"{row['tgt_len']} tokens"
    text = f"batch {row['batch']}, {tokens}, memory {row['mem_len']}"
    return f"{text}, {row['attention']} attention" if "headline" in row else text
