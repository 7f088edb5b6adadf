"""The report of the arms of a pretrained experiment."""

from __future__ import annotations

import copy
import re

import numpy as np
import pytest
from made_up_arms import arm, arms

from planer.evaluation.arms.choice import budgets_won, choose
from planer.evaluation.arms.summary import chosen_row, summary_line
from planer.files import check_shape
from planer.report.arms import verdict
from planer.report.arms.figures import FIGURES
from planer.report.arms.page import render, write_arms


@pytest.mark.parametrize("metric", ["accuracy", "nll"])
def test_the_page_names_every_arm_and_has_every_figure(metric, tmp_path):
    evaluations = arms(metric)
    for evaluation in evaluations:
        check_shape("eval.json", evaluation, "arm")
    write_arms(tmp_path / "arms.html", evaluations)
    page = (tmp_path / "arms.html").read_text()
    assert page.count("<svg") == len(FIGURES)
    assert page.count("<section>") == page.count("</section>") == 2 + len(FIGURES) + 1 + 3 + 1
    for evaluation in evaluations:
        assert f"<td>{evaluation['variant']}</td>" in page
    assert not re.search(r"\b(None|nan)\b", page)
    assert "10.0 M FLOPs per token: projections 30.0%, attention 5.0%, feed-forward 60.0%, head 5.0%." in page
    assert all(f'aria-label="{description}"' in page for description in FIGURES.values())


def test_bounds_are_not_taken_for_rows_of_the_router():
    labels = [verdict.label(row) for row in arms()[3]["rows"]]
    assert "random absolute 0.4" in labels and "oracle dynamic_k 0.1" in labels and "absolute 0.4" not in labels


def test_the_same_evaluations_give_the_same_page():
    evaluations = arms()[:3]
    assert render(evaluations) == render(copy.deepcopy(evaluations))


def test_a_page_of_the_dense_arm_alone_has_no_figures():
    page = render(arms()[:2])
    assert "<svg" not in page and "reference" in page


def test_verdicts_on_quality_and_time():
    _, dense, moefication, d2dmoe, threshold = arms()
    words = [(verdict.quality(e).word, verdict.time(e).word) for e in (dense, moefication, d2dmoe, threshold)]
    assert words[0] == ("reference", "not compared")
    assert words[2] == ("kept", "faster")
    assert verdict.quality(d2dmoe).text.startswith("dynamic_k 0.2: accuracy 0.911")
    assert "76% of the network's FLOPs and 60% of the converted layers'" in verdict.quality(d2dmoe).text
    assert words[1] == ("kept", "slower")
    assert words[3] == ("kept, nothing saved", "slower")
    assert verdict.quality(threshold).text.startswith("all, nothing is left out: ")


def test_the_reference_of_each_arm_is_on_the_page():
    page = render(arms())
    assert page.index("<td>dense_continued</td>") < page.index("<td>dense</td>") < page.index("<td>d2dmoe</td>")
    assert "against dense_continued&#39;s 0.92" in page
    assert verdict.quality(arms()[4]).text.endswith("100% of the converted layers'")
    assert "against dense's 0.92" in verdict.quality(arms()[4]).text


def test_a_row_that_loses_on_the_test_split_is_not_kept():
    evaluation = arms()[3]
    row = chosen_row(evaluation)
    row["test"] = row["test"] | {"accuracy": 0.8}
    assert verdict.quality(evaluation).word == "lost"
    evaluation["chosen"] = None
    assert verdict.quality(evaluation).word == "lost"
    assert verdict.time(evaluation).word == "not compared"


def test_arms_faster_in_part_or_not_told_apart():
    evaluation = arms()[3]
    for entry in evaluation["latency"]:
        if entry["batch"] == 1 and entry["selector"] != "dense":
            entry["low"] = 0.9
    found = verdict.time(evaluation)
    assert (found.word, found.good) == ("faster in part", False)
    for entry in evaluation["latency"]:
        entry["low"] = 0.9
    found = verdict.time(evaluation)
    assert (found.word, found.good) == ("not told apart", None)


def test_the_summary_line_of_an_arm():
    _, dense, _, d2dmoe, _ = arms()
    assert summary_line(dense) == "accuracy 0.92 on the test split, 1e+07 FLOPs per token"
    line = summary_line(d2dmoe)
    assert line.startswith("dynamic_k 0.2: accuracy 0.911") and "; 76% of the FLOPs; batch 1 forward 1.32 times" in line
    assert summary_line(d2dmoe | {"chosen": None}) == "no setting keeps the accuracy of dense_continued within 1.0%"


def test_layers_that_ran_densely_are_named():
    evaluation = arms()[3]
    assert "densely" not in verdict.time(evaluation).text
    for entry in evaluation["latency"]:
        entry["dense_layers"] = 2
    assert verdict.time(evaluation).text.endswith("; 2 of 3 layers ran densely")


@pytest.mark.parametrize("metric", ["accuracy", "nll"])
def test_dynamic_k_is_compared_with_moefication_at_every_budget(metric):
    (line,) = verdict.against_moefication(arms(metric))
    assert line == "At every one of 5 FLOPs budgets dynamic k of d2dmoe is better than top-k of moefication."
    worse = arm("d2dmoe", "experts", "dynamic_k", 0.2, metric)
    (line,) = verdict.against_moefication([arms(metric)[2], worse])
    assert line.startswith("At 0 of 5 FLOPs budgets")


def test_budgets_beyond_a_curve_are_not_compared():
    own = np.array([0.5, 1.0]), np.array([0.8, 0.9])
    other = np.array([0.4, 0.5, 0.75, 1.2]), np.array([0.9, 0.7, 0.9, 0.1])
    assert budgets_won(own, other, "higher") == (1, 2)
    assert budgets_won(own, other, "lower") == (1, 2)
    assert budgets_won((np.array([]), np.array([])), other, "higher") == (0, 0)


def test_the_cheapest_row_that_keeps_the_validation_quality_is_chosen():
    evaluation = arms("nll")[3]
    chosen = choose(evaluation["rows"], "nll", 2.5, "lower", 0.004)
    kept = [r for r in evaluation["rows"] if not r["bound"] and r["valid"]["nll"] <= 2.5 * 1.004]
    assert chosen["network_flops"] == min(r["network_flops"] for r in kept)
    assert choose(evaluation["rows"], "nll", 2.0, "lower", 0.004) is None


def test_thresholds_of_0_are_chosen_before_all_neurons_with_the_same_flops():
    whole, row = arms("nll")[4]["rows"][:2]
    row |= {key: whole[key] for key in ("valid", "network_flops")}
    assert whole["selector"] == "all" and choose([whole, row], "nll", 2.5, "lower", 0.01) is row
