"""Figures of how searches went, drawn from their trajectories and from the scores beside their networks.

Letters in shapes: P positions, N options, E experts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from scipy.special import softmax

from planer.errors import Damaged
from planer.files import read_parquet
from planer.report.drawing import BLUE, GRID, INK, MUTED, ORANGE, colour_key, new_figure, scale, style
from planer.specs import Architecture, load_selection

TRAJECTORY = {name: "number" for name in ("entropy", "skip_share", "expected_ms", "argmax_ms", "budget_ms")}
TRAJECTORY |= {"epoch": "integer", "flips": "integer", "beta_on": "gaps", "ce_alpha": "gaps"}
TRAJECTORY |= {name: "lists" for name in ("alpha", "updates", "expert_tokens")}
"""Types of the columns of trajectory.parquet."""

WHOLE = 0.95
"""Share of the scores that the colours resolve; the largest ones, of blocks that ruin the network, saturate."""


@dataclass(frozen=True)
class Search:
    """Results of a search."""

    trajectory: pd.DataFrame
    """One row per epoch; planer/search/phase1.py describes the columns."""
    options: list[str]
    """The design space [N]."""
    chosen: list[str]
    """Option at each position [P]."""
    scores: np.ndarray | None
    """Replace-one scores [P, N] in nats per token, or None where the search had none."""

    @classmethod
    def load(cls, folder: str | Path) -> Search:
        """Of the variant whose folder this is.

        Raises UserError when a file is missing, damaged or changed, or the two do not fit each other.
        """
        network, path = Path(folder) / "architecture.yaml", Path(folder) / "search/trajectory.parquet"
        trajectory, _ = read_parquet(path, TRAJECTORY, others="gaps")
        notes = load_selection(network)
        scores = np.array(list(notes["scores"].values())) if notes["rounds"] else None
        chosen = [block.name for block in Architecture.load(network).blocks]
        found = cls(trajectory, notes["score_options"], chosen, scores)
        shapes = [found.last("alpha").shape, found.last("updates").shape, *([] if scores is None else [scores.shape])]
        if set(shapes) != {(len(chosen), len(found.options))} or not set(chosen) <= set(found.options):
            raise Damaged(path, f"does not fit {network.name} of the same variant")
        return found

    def last(self, column: str) -> np.ndarray:
        """A nested column in the last epoch."""
        return _array(self.trajectory[column].iloc[-1])

    def total(self, column: str) -> np.ndarray:
        """A nested column summed over epochs."""
        return sum(map(_array, self.trajectory[column]))


def draw_searches(searches: Mapping[str, Search]) -> dict[str, Figure]:
    """The figures of searches, by variant; none without a search."""
    if not searches:
        return {}
    with style():
        return {"search_health": health(searches), "choices": choices(searches), "updates": updates(searches)}


def health(searches: Mapping[str, Search]) -> Figure:
    """Numbers that tell a search that works from one that collapses, over epochs; a row per search.

    Entropy of alpha and its share on skip, means over positions; share of the architecture steps with the latency loss
    on; positions whose argmax changed; expected latency and that of the argmax.  Epochs with frozen architecture
    weights are shaded.
    """
    columns: list[tuple[str, Callable[[Axes, pd.DataFrame], object]]] = [
        ("\u03b1 entropy, nats", lambda axes, rows: axes.plot(rows["epoch"], rows["entropy"], color=BLUE)),
        ("share on skip", lambda axes, rows: axes.plot(rows["epoch"], rows["skip_share"], color=BLUE)),
        ("latency loss on", lambda axes, rows: axes.plot(rows["epoch"], rows["beta_on"], color=BLUE)),
        ("argmax flips", lambda axes, rows: axes.bar(rows["epoch"], rows["flips"], color=BLUE, width=0.8)),
        ("latency, ms", _latencies),
    ]
    figure, panels = new_figure(0.75 + 1.25 * len(searches), len(searches), len(columns), sharex=True, sharey="col")
    rows = zip(searches.items(), np.reshape(panels, (len(searches), -1)), strict=True)
    for number, ((variant, search), row) in enumerate(rows):
        trajectory = search.trajectory
        for axes, (title, plot) in zip(row, columns, strict=True):
            plot(axes, trajectory)
            frozen = trajectory["ce_alpha"].isna().sum()
            axes.axvspan(-0.5, frozen - 0.5, color=GRID, alpha=0.6, linewidth=0, zorder=0)
            axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
            axes.yaxis.set_major_locator(MaxNLocator(3))
            axes.tick_params(labelsize=7)
            if number == 0:
                axes.set_title(title, fontsize=8)
        row[0].set_ylabel(variant, fontsize=8)
        row[3].yaxis.set_major_locator(MaxNLocator(3, integer=True))
    for axes, most in zip(row, (math.log(max(len(s.options) for s in searches.values())), 1, 1), strict=False):
        axes.set_ylim(-0.05 * most, 1.05 * most)
    for axes in (row[3], row[4]):
        axes.set_ylim(bottom=0)
    figure.supxlabel("epoch", fontsize=8)
    lines = {"expected latency": (BLUE, "-"), "of the argmax": (ORANGE, "-"), "budget": (INK, "--")}
    handles = [Line2D([], [], color=colour, linestyle=line, label=name) for name, (colour, line) in lines.items()]
    handles.append(Patch(facecolor=GRID, alpha=0.6, label="architecture weights frozen"))
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles))
    return figure


def _latencies(axes: Axes, rows: pd.DataFrame) -> None:
    axes.plot(rows["epoch"], rows["expected_ms"], color=BLUE)
    axes.plot(rows["epoch"], rows["argmax_ms"], color=ORANGE, linewidth=1)
    axes.plot(rows["epoch"], rows["budget_ms"], color=INK, linewidth=0.9, linestyle="--")


def choices(searches: Mapping[str, Search]) -> Figure:
    """Final softmax(alpha) (as in figure 2 of PAR, arXiv 2009.04534) beside replace-one scores, [P, N] each.

    A ring marks the option that was chosen.
    """
    weights = {variant: softmax(search.last("alpha"), axis=1) for variant, search in searches.items()}
    scores = {variant: search.scores for variant, search in searches.items()}
    known = [values for values in scores.values() if values is not None]
    limit = max((float(np.quantile(np.abs(values), WHOLE)) for values in known), default=0.0) or 1.0
    figure, grid = _grid(searches)
    for (variant, search), (left, right) in zip(searches.items(), grid, strict=True):
        ring = [(position, search.options.index(option)) for position, option in enumerate(search.chosen)]
        most = max(values.max() for values in weights.values())
        shares = _map(left, weights[variant], search.options, scale(BLUE), Normalize(0, most), ring)
        left.set_title(f"{variant}: softmax(\u03b1)")
        if scores[variant] is None:
            _without(right, "no replace-one scores")
            continue
        drops = _map(right, scores[variant], search.options, scale(BLUE, ORANGE), Normalize(-limit, limit), ring)
        right.set_title("replace-one scores")
    colour_key(figure, shares, [left for left, _ in grid], "probability")
    if known:
        label = "fall of the supernet's loss in nats per token"
        colour_key(figure, drops, [right for _, right in grid], label, extend="both")
    return figure


def updates(searches: Mapping[str, Search]) -> Figure:
    """What the supernet was trained on: share of the weight steps that ran each option [P, N], and share of the tokens
    that each expert of the mixtures got [P, E], as multiples of an even share."""
    figure, grid = _grid(searches)
    even = Normalize(0, 2)
    experts = None
    for (variant, search), (left, right) in zip(searches.items(), grid, strict=True):
        steps = _even_shares(search.total("updates"))
        options = _map(left, steps, search.options, scale(BLUE, ORANGE), even)
        left.set_title(f"{variant}: steps of each option")
        tokens = search.total("expert_tokens")
        if tokens.size:
            names = [f"expert {number}" for number in range(tokens.shape[1])]
            experts = _map(right, _even_shares(tokens), names, scale(BLUE, ORANGE), even)
            right.set_title("tokens of each expert")
        else:
            _without(right, "no mixture of experts")
    colour_key(figure, options, [left for left, _ in grid], "of an even share of the steps", extend="max")
    if experts is not None:
        colour_key(figure, experts, [right for _, right in grid], "of an even share of the tokens", extend="max")
    return figure


def _grid(searches: Mapping[str, Search]) -> tuple[Figure, list[tuple[Axes, Axes]]]:
    """A row of two maps for each search."""
    options = max(len(search.options) for search in searches.values())
    figure, panels = new_figure(0.8 + len(searches) * (0.75 + 0.16 * options), len(searches), 2)
    return figure, list(zip(panels[::2], panels[1::2], strict=True))


def _map(
    axes: Axes,
    values: np.ndarray,
    labels: Sequence[str],
    colours: Colormap,
    norm: Normalize,
    rings: Sequence[tuple[int, int]] = (),
):
    """Colours of values [P, len(labels)], positions from left to right, with a ring around some (position, label)."""
    positions = len(values)
    edges = np.arange(positions + 1) - 0.5, np.arange(len(labels) + 1) - 0.5
    mesh = axes.pcolormesh(*edges, values.T, cmap=colours, norm=norm)
    for position, label in rings:
        axes.plot(position, label, "o", fillstyle="none", color=INK, markersize=6 if positions <= 16 else 4)
    axes.set_yticks(range(len(labels)), labels)
    axes.xaxis.set_major_locator(MaxNLocator(min(positions, 12), integer=True))
    axes.tick_params(length=0, labelsize=7)
    axes.set_xlabel("position, from the embedding to the head", fontsize=7)
    axes.invert_yaxis()
    axes.grid(False)
    return mesh


def _without(axes: Axes, reason: str) -> None:
    axes.set_axis_off()
    axes.text(0.5, 0.5, reason, transform=axes.transAxes, ha="center", va="center", color=MUTED, fontsize=8)


def _array(nested) -> np.ndarray:
    """Nested lists, as Parquet gives them back, as one array."""
    return np.array([list(row) for row in nested])


def _even_shares(counts: np.ndarray) -> np.ndarray:
    """Counts [P, n] as multiples of what each of n would have if all had the same; 1 where nothing was counted."""
    total = counts.sum(axis=1, keepdims=True)
    return np.divide(counts * counts.shape[1], total, out=np.ones(counts.shape), where=total > 0)
