"""Figures of made-up searches."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from toy import experiment

from planer.files import write_parquet
from planer.report.drawing import to_svg
from planer.report.search_figures import Search, draw_searches

CONFIG = experiment()
OPTIONS = list(CONFIG.design_space)
POSITIONS, EXPERTS, EPOCHS, FROZEN = 4, 4, 6, 2


def trajectory(experts: int = EXPERTS) -> pd.DataFrame:
    """The trajectory of a search whose architecture weights change towards feed-forward layers."""
    rows = []
    for epoch in range(EPOCHS):
        alpha = np.zeros((POSITIONS, len(OPTIONS)))
        alpha[:, OPTIONS.index("feed_forward")] = max(0, epoch - FROZEN + 1)
        row = {
            "epoch": epoch,
            "entropy": math.log(len(OPTIONS)) - 0.1 * epoch,
            "skip_share": 0.2,
            "flips": int(epoch == FROZEN),
            "expected_ms": 9.0 - epoch,
            "argmax_ms": 5.0,
            "budget_ms": 6.0,
            "alpha": alpha.tolist(),
            "updates": [[1, 1, 0, 0, 0, 0]] * POSITIONS,
            "expert_tokens": [list(range(experts))] * POSITIONS,
        }
        rows.append(row if epoch < FROZEN else row | {"ce_alpha": 2.0, "beta_on": 0.5})
    return pd.DataFrame(rows)


def searched(folder, source: str = "solver", rounds: int = 1, experts: int = EXPERTS) -> Search:
    """The files of a search of (sf)x2 in a folder, with this many rounds of replace-one scores."""
    write_parquet(folder / "search/trajectory.parquet", trajectory(experts))
    scores = np.arange(POSITIONS * len(OPTIONS)).reshape(POSITIONS, -1) / 100
    notes = dict.fromkeys(("status", "gap", "target")) | {
        "variant": "par_search",
        "chosen_by": "solver",
        "source": source,
        "solver": "milp",
        "estimated": 0.9,
        "used": {},
        "rounds": [{"options": [1, 3, 1, 3], "supernet_nll": 2.0}] * rounds,
        "closed_loop": [],
        "candidates": [],
        "scored_by": {"solver": "replace_one", "argmax": "alpha"}.get(source),
        "scores": {f"position_{position}": row for position, row in enumerate(scores.tolist())},
        "score_options": OPTIONS,
    }
    CONFIG.model.architecture(256, "s1fs1f").save(folder / "architecture.yaml", selection=notes)
    return Search.load(folder)


def meshes(figure) -> list[np.ndarray]:
    """Values of the maps of a figure, without colour bars: [positions, labels] each."""
    found = [(axes, mesh) for axes in figure.axes for mesh in axes.collections if hasattr(mesh, "get_coordinates")]
    return [np.asarray(mesh.get_array()).T for axes, mesh in found if axes.get_label() != "<colorbar>"]


def test_a_search_is_read_from_its_folder(tmp_path):
    search = searched(tmp_path)
    assert search.chosen == ["attention_1", "feed_forward"] * 2 and search.options == OPTIONS
    assert search.scores.shape == (POSITIONS, len(OPTIONS)) and search.scores[1, 0] == 0.06
    assert search.last("alpha")[0].tolist() == [0, 0, 0, EPOCHS - FROZEN, 0, 0]
    assert search.total("updates")[0].tolist() == [EPOCHS, EPOCHS, 0, 0, 0, 0]


def test_replace_one_scores_are_shown_whatever_proposed_the_chosen_network(tmp_path):
    assert searched(tmp_path / "solver", rounds=0).scores is None, "the scores are of architecture weights"
    for source in ("shallow", "argmax"):
        assert searched(tmp_path / source, source).scores is not None
        assert searched(tmp_path / f"{source}_alone", source, rounds=0).scores is None


def test_the_health_figure_has_every_value_of_every_search(tmp_path):
    figure = draw_searches({name: searched(tmp_path / name) for name in ("target_0.5", "target_0.75")})["search_health"]
    assert len(figure.axes) == 2 * 5
    row = figure.axes[5:]
    assert row[0].get_ylabel() == "target_0.75"
    assert row[0].lines[0].get_ydata().tolist() == trajectory()["entropy"].tolist()
    beta = row[2].lines[0].get_ydata()
    assert np.isnan(beta[:FROZEN]).all() and (beta[FROZEN:] == 0.5).all()
    assert [bar.get_height() for bar in row[3].containers[0]] == trajectory()["flips"].tolist()
    names = ("expected_ms", "argmax_ms", "budget_ms")
    for line, name in zip(row[4].lines, names, strict=True):
        assert line.get_ydata().tolist() == trajectory()[name].tolist()


def test_the_choices_figure_has_weights_scores_and_the_chosen_network(tmp_path):
    search = searched(tmp_path)
    figure = draw_searches({"target_0.5": search})["choices"]
    weights, scores = meshes(figure)
    assert weights.sum(axis=1).tolist() == pytest.approx([1] * POSITIONS)
    assert weights[0, 3] / weights[0, 0] == pytest.approx(math.exp(EPOCHS - FROZEN))
    assert np.array_equal(scores, search.scores)
    for axes in figure.axes[:2]:
        rings = [(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines]
        assert rings == [(0, 1), (1, 3), (2, 1), (3, 3)]


def test_updates_are_multiples_of_an_even_share(tmp_path):
    steps, tokens = meshes(draw_searches({"target_0.5": searched(tmp_path)})["updates"])
    assert steps[0].tolist() == pytest.approx([3, 3, 0, 0, 0, 0])
    assert tokens[0].tolist() == pytest.approx([0, 4 / 6, 8 / 6, 12 / 6])


def test_searches_without_scores_or_experts_say_so(tmp_path):
    figures = draw_searches({"par_search": searched(tmp_path, "argmax", rounds=0, experts=0)})
    texts = {name: [text.get_text() for axes in figure.axes for text in axes.texts] for name, figure in figures.items()}
    assert texts["choices"] == ["no replace-one scores"] and texts["updates"] == ["no mixture of experts"]
    assert len(meshes(figures["choices"])) == len(meshes(figures["updates"])) == 1


def test_figures_have_no_bitmaps_and_the_same_bytes_every_time(tmp_path):
    first, second = (
        {name: to_svg(figure) for name, figure in draw_searches({"target_0.5": searched(tmp_path)}).items()}
        for _ in range(2)
    )
    assert first == second and not any("<image" in svg for svg in first.values())


def test_no_search_no_figures():
    assert draw_searches({}) == {}
