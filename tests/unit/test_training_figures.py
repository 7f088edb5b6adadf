"""Figures of training: which panels and lines there are, and what the lines show."""

from __future__ import annotations

import numpy as np
import pandas as pd

from planer.evaluation.drawing import to_svg
from planer.evaluation.training_figures import warm_starts


def history(last: float) -> pd.DataFrame:
    """Loss every 10 steps, validation every 20."""
    steps = np.arange(10, 101, 10)
    valid = np.where(steps % 20 == 0, last + (100 - steps) / 50, np.nan)
    return pd.DataFrame({"step": steps, "loss": valid + 1, "valid_nll": valid})


def test_networks_with_several_starts_have_a_panel_each():
    names = ["baseline", "target_0.5-upcycle", "target_0.5", "par-distill", "par", "target_0.5-seed2", "lts_0.5"]
    figure = warm_starts({name: history(2 + i / 10) for i, name in enumerate(names)})
    panels = figure.axes
    assert [axes.get_title() for axes in panels] == ["target_0.5", "par"]
    labels = [[line.get_label() for line in axes.lines] for axes in panels]
    assert labels == [
        ["random weights: 2.200", "weights of the baseline: 2.100"],
        ["random weights: 2.400", "random, baseline as teacher: 2.300"],
    ]
    line = panels[0].lines[1]
    assert line.get_xdata().tolist() == [20, 40, 60, 80, 100]
    assert np.allclose(line.get_ydata(), [3.7, 3.3, 2.9, 2.5, 2.1])
    assert to_svg(figure) == to_svg(figure)


def test_an_odd_panel_leaves_no_empty_one():
    names = ("target_0.5", "target_0.7", "par")
    figure = warm_starts({f"{name}{suffix}": history(2.0) for name in names for suffix in ("", "-distill")})
    assert [axes.get_title() for axes in figure.axes] == list(names)


def test_without_two_starts_of_a_network_there_is_no_figure():
    assert warm_starts({}) is None
    assert warm_starts({"baseline": history(2.0), "target_0.5": history(2.1), "par-distill": history(2.2)}) is None
