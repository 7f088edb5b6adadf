"""Figures of how networks trained, drawn from the histories that stages left."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from planer.evaluation.drawing import INK, new_figure
from planer.variant import parse_variant

STARTS = {
    "scratch": ("o", INK),
    "inherit": ("s", "#0072b2"),
    "upcycle": ("^", "#d55e00"),
    "distill": ("D", "#009e73"),
}
"""Marker and colour of what a training starts from."""
LABELS = {
    "scratch": "random weights",
    "inherit": "weights of the supernet",
    "upcycle": "weights of the baseline",
    "distill": "random, baseline as teacher",
}


def warm_starts(histories: dict[str, pd.DataFrame]) -> Figure | None:
    """Validation loss over steps, one panel per network that was trained from more than one start.

    histories: of retraining, by variant; columns step and valid_nll are used.  The legend of a panel gives each last
    value.  None when no network has two.
    """
    networks: dict[str, dict[str, pd.DataFrame]] = {}
    for name, history in histories.items():
        variant = parse_variant(name)
        networks.setdefault(variant.original, {})[variant.start] = history.dropna(subset="valid_nll")
    networks = {original: starts for original, starts in networks.items() if len(starts) > 1}
    if not networks:
        return None
    columns = min(len(networks), 2)
    rows = -(-len(networks) // columns)
    figure, panels = new_figure(3.4 * rows, rows=rows, columns=columns)
    for axes, (original, starts) in zip(panels, networks.items(), strict=False):
        for start in sorted(starts, key=list(STARTS).index):
            marker, colour = STARTS[start]
            steps, losses = starts[start]["step"], starts[start]["valid_nll"]
            label = f"{LABELS[start]}: {losses.iloc[-1]:.3f}"
            axes.plot(steps, losses, marker=marker, color=colour, markersize=3.5, linewidth=1.3, label=label)
        axes.set(title=original, xlabel="training steps", ylabel="validation loss, nats per token")
        axes.legend()
    for axes in panels[len(networks) :]:
        axes.remove()
    return figure
