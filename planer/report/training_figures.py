"""Figures of how networks trained, drawn from the histories that stages left."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from planer.config.variant import SCRATCH, parse_variant
from planer.files import read_parquet
from planer.report.drawing import BLUE, MUTED, ORANGE, SURFACE, colour_key, new_figure, scale, style

STARTS = {
    False: ("trained baseline", "o", BLUE),
    True: ("random weights", "s", ORANGE),
}
"""What search and training start from: name, marker and colour, by whether that is random weights."""

COLUMNS = 60
"""Columns of a map over steps; longer histories are averaged."""


def load_history(path: str | Path) -> pd.DataFrame:
    """A history of retraining.  Raises UserError when the file is missing, damaged or changed."""
    return read_parquet(path, {"step": "integer", "valid_nll": "gaps"}, others="gaps")[0]


def draw_trainings(histories: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    """The figures of retraining by name, from histories by variant; one whose data no variant has is left out."""
    with style():
        figures = {"expert_balance": expert_balance(histories), "starts": starts(histories)}
    return {name: figure for name, figure in figures.items() if figure is not None}


def starts(histories: dict[str, pd.DataFrame]) -> Figure | None:
    """Validation loss over steps, one panel per variant that was trained from the baseline and from random weights.

    histories: of retraining, by variant; columns step and valid_nll are used.  The legend of a panel gives each last
    value.  None when no variant has both.
    """
    variants: dict[str, dict[bool, pd.DataFrame]] = {}
    for name, history in histories.items():
        variant = parse_variant(name)
        variants.setdefault(name.replace(SCRATCH, ""), {})[variant.scratch] = history.dropna(subset="valid_nll")
    variants = {name: found for name, found in variants.items() if len(found) > 1}
    if not variants:
        return None
    columns = min(len(variants), 2)
    rows = -(-len(variants) // columns)
    figure, panels = new_figure(3.4 * rows, rows=rows, columns=columns)
    for axes, (name, found) in zip(panels, variants.items(), strict=False):
        for scratch, history in sorted(found.items()):
            start, marker, colour = STARTS[scratch]
            steps, losses = history["step"], history["valid_nll"]
            label = f"{start}: {losses.iloc[-1]:.3f}"
            axes.plot(steps, losses, marker=marker, color=colour, markersize=3.5, linewidth=1.3, label=label)
        axes.set(title=name, xlabel="training steps", ylabel="validation loss, nats per token")
        axes.legend()
    for axes in panels[len(variants) :]:
        axes.remove()
    return figure


def expert_balance(histories: Mapping[str, pd.DataFrame]) -> Figure | None:
    """The load-balancing loss and the load of every expert over retraining; a row per network with experts.

    histories: of retraining, by variant.  Columns load_<block>_<expert> are shares of a block's assignments, and
    balance is 1 when all its experts get the same.  None when no network has mixtures of experts.
    """
    loads = {variant: _loads(history) for variant, history in histories.items()}
    loads = {variant: table for variant, table in loads.items() if table.shape[1]}
    if not loads:
        return None
    heights = [max(1.1, 0.06 * table.shape[1]) for table in loads.values()]
    ratios = {"height_ratios": heights, "width_ratios": (1, 2)}
    figure, panels = new_figure(0.9 + 1.25 * sum(heights), len(loads), 2, sharex=True, gridspec_kw=ratios)
    for (variant, table), left, right in zip(loads.items(), panels[::2], panels[1::2], strict=True):
        history = histories[variant].dropna(subset="balance")
        left.plot(history["step"], history["balance"], color=BLUE, linewidth=1.2)
        left.axhline(1, color=MUTED, linewidth=0.8, linestyle="--")
        left.set_title(f"{variant}: balance loss")
        mesh = _draw_loads(right, table)
    for axes in panels[-2:]:
        axes.set_xlabel("training steps")
    colour_key(figure, mesh, panels, "load, as a multiple of an even share", extend="max")
    return figure


def _loads(history: pd.DataFrame) -> pd.DataFrame:
    """Loads as multiples of an even share: a column per (block, expert), rows indexed by the last step they cover."""
    found = [re.fullmatch(r"load_(\d+)_(\d+)", name) for name in history.columns]
    names = {match[0]: (int(match[1]), int(match[2])) for match in found if match}
    table = history.set_index("step")[sorted(names, key=names.get)].dropna()
    table.columns = pd.MultiIndex.from_tuples([names[name] for name in table.columns], names=("block", "expert"))
    table = table / table.T.groupby("block").transform("mean").T
    part = np.arange(len(table)) * COLUMNS // max(len(table), COLUMNS)
    return table.groupby(part).mean().set_index(table.index.to_series().groupby(part).last())


def _draw_loads(axes: Axes, table: pd.DataFrame) -> QuadMesh:
    """One line of colours per expert, steps from left to right, blocks apart."""
    experts = table.columns.to_frame(index=False).groupby("block").size()
    ends = experts.cumsum()
    edges = [0, *table.index], range(table.shape[1] + 1)
    mesh = axes.pcolormesh(*edges, table.to_numpy().T, cmap=scale(BLUE, ORANGE), norm=Normalize(0, 2))
    axes.set_yticks(ends - experts / 2, [f"block {block}" for block in experts.index])
    for end in ends[:-1]:
        axes.axhline(end, color=SURFACE, linewidth=1.5)
    axes.invert_yaxis()
    axes.grid(False)
    axes.tick_params(axis="y", length=0)
    axes.set_title("load of each expert")
    return mesh
