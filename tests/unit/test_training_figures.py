"""Figures of training: panels, lines and their values."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from planer.report.drawing import to_svg
from planer.report.training_figures import COLUMNS, draw_trainings, expert_balance, starts


def history(last: float) -> pd.DataFrame:
    """The loss of every 10th step and the validation of every 20th."""
    steps = np.arange(10, 101, 10)
    valid = np.where(steps % 20 == 0, last + (100 - steps) / 50, np.nan)
    return pd.DataFrame({"step": steps, "loss": valid + 1, "valid_nll": valid})


def test_variants_with_both_starts_have_a_panel_each():
    names = ["baseline", "target_0.5-scratch", "target_0.5", "par", "par-scratch", "target_0.5-seed2", "lts_0.5"]
    figure = starts({name: history(2 + i / 10) for i, name in enumerate(names)})
    panels = figure.axes
    assert [axes.get_title() for axes in panels] == ["target_0.5", "par"]
    labels = [[line.get_label() for line in axes.lines] for axes in panels]
    assert labels == [
        ["trained baseline: 2.200", "random weights: 2.100"],
        ["trained baseline: 2.300", "random weights: 2.400"],
    ]
    line = panels[0].lines[1]
    assert line.get_xdata().tolist() == [20, 40, 60, 80, 100]
    assert np.allclose(line.get_ydata(), [3.7, 3.3, 2.9, 2.5, 2.1])
    assert to_svg(figure) == to_svg(figure)


def test_an_odd_number_of_panels_leaves_none_empty():
    names = ("target_0.5-seed1", "target_0.7-seed1", "par-seed1")
    both = [name.replace("-seed", f"{suffix}-seed") for name in names for suffix in ("", "-scratch")]
    assert [axes.get_title() for axes in starts({name: history(2.0) for name in both}).axes] == list(names)


def test_without_both_starts_of_a_variant_there_is_no_figure():
    assert starts({}) is None
    assert starts({"baseline": history(2.0), "target_0.5": history(2.1), "par-scratch": history(2.2)}) is None


def balanced(loads: dict[int, list[float]], rows: int = 10) -> pd.DataFrame:
    """A history with these shares of the assignments of each block, one for each expert."""
    shares = {f"load_{block}_{e}": share for block, experts in loads.items() for e, share in enumerate(experts)}
    steps = 10 * np.arange(1, rows + 1)
    table = pd.DataFrame({"step": steps, "balance": 1 + 1 / steps, "valid_nll": np.nan, **shares})
    validated = pd.DataFrame({"step": [15], "valid_nll": [2.0]})
    return pd.concat([table, validated]).sort_values("step", ignore_index=True)


def test_loads_are_multiples_of_an_even_share():
    loads = {10: [0.5, 0.25, 0.25, 0.0], 9: [0.7, 0.3]}
    figure = expert_balance({"baseline": history(2.0), "target_0.5": balanced(loads)})
    left, right, key = figure.axes
    assert left.get_title() == "target_0.5: balance loss"
    assert left.lines[0].get_ydata().tolist() == [1 + 1 / step for step in range(10, 101, 10)]
    assert [text.get_text() for text in right.get_yticklabels()] == ["block 9", "block 10"]
    values = np.asarray(right.collections[0].get_array())
    assert values.shape == (6, 10)
    for step in values.T:
        assert step.tolist() == pytest.approx([1.4, 0.6, 2.0, 1.0, 1.0, 0.0])
    assert right.collections[0].get_coordinates()[0, :, 0].tolist() == [0, *range(10, 101, 10)]
    assert "<image" not in to_svg(figure)


def test_long_histories_are_averaged():
    table = balanced({0: [0.5, 0.5]}, rows=2 * COLUMNS)
    table.loc[table.index[:1], ["load_0_0", "load_0_1"]] = [1.0, 0.0]
    mesh = expert_balance({"target_0.5": table}).axes[1].collections[0]
    values = np.asarray(mesh.get_array())
    assert values.shape == (2, COLUMNS)
    assert values[:, 0].tolist() == pytest.approx([1.5, 0.5]) and values[:, 1].tolist() == pytest.approx([1, 1])
    assert mesh.get_coordinates()[0, [0, 1, -1], 0].tolist() == [0, 20, 10 * 2 * COLUMNS]


def test_figures_without_data_are_not_drawn():
    assert draw_trainings({"baseline": history(2.0), "par": history(2.1)}) == {}
    assert list(draw_trainings({"baseline": history(2.0), "target_0.5": balanced({1: [0.5, 0.5]})})) == [
        "expert_balance"
    ]
