"""Comparisons of networks with their controls, from made-up evaluations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from made_up import evaluation
from scipy.stats import ttest_rel

from planer.config.variant import parse_variant
from planer.evaluation.controls import compare_seeds, compare_with_controls
from planer.report.control_tables import control_table, shallow_finding


def network(name: str, nll: float, noise: float = 0.01) -> dict:
    """An evaluation of mean ``nll`` with noise in its segments, seeded by the name."""
    values = evaluation(name, "s4f", nll, 0.5, parse_variant(name).target)
    segments, random = values["quality"]["segments"], np.random.default_rng(list(name.encode()))
    hard = np.array(evaluation(name, "s4f", 1.6, 0.5)["quality"]["segments"]["nll"])
    shifts = random.normal(0, noise, len(hard))
    segments["nll"] = (hard + nll - 1.6 + shifts - np.average(shifts, weights=segments["tokens"])).tolist()
    return values


def compared(name: str, others: dict[str, float], nll: float = 1.62) -> dict[str, str]:
    found = compare_with_controls(network(name, nll), [network(other, value) for other, value in others.items()])
    return {comparison.control: comparison.paired.word for comparison in found}


CONTROLS = {"continued": 1.55, "shallow_0.5": 1.621, "random_0.5_1": 1.66, "random_0.5_2": 1.67, "random_0.5_3": 1.68}


def test_a_network_is_compared_with_all_of_its_controls():
    assert compared("target_0.5", CONTROLS) == {
        "baseline": "worse", "continued": "worse", "shallow": "not told apart", "random": "better",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "controls"),
    [
        ("target_0.5", ["baseline", "continued", "shallow", "random"]),
        ("isoparam_0.5", ["baseline", "continued", "shallow", "random"]),
        ("target_0.4", ["baseline", "continued"]),
        ("par", ["baseline", "continued"]),
        ("keep_0.01", ["baseline", "continued"]),
        ("target_0.5-seed1", ["baseline"]),
        ("target_0.5-scratch", ["baseline"]),
        ("shallow_0.5", ["baseline"]),
        ("lts_0.5", ["baseline"]),
        ("baseline", []),
    ],
)
def test_controls_have_the_same_target_start_and_seed(name, controls):
    assert list(compared(name, CONTROLS)) == controls


def test_seeds_and_scratch_are_compared_with_controls_of_their_kind():
    others = {"continued-seed1": 1.6, "shallow_0.5-seed1": 1.6, "shallow_0.5-scratch": 1.6}
    assert list(compared("target_0.5-seed1", others)) == ["baseline", "continued", "shallow"]
    assert list(compared("target_0.5-scratch", others)) == ["baseline", "shallow"]


def test_without_a_baseline_the_other_controls_are_compared():
    values = network("target_0.5", 1.62)
    values["baseline"]["quality"] = None
    assert [found.control for found in compare_with_controls(values, [network("continued", 1.6)])] == ["continued"]


def test_one_control_is_compared_over_segments():
    own, shallow = network("target_0.5", 1.62), network("shallow_0.5", 1.6)
    found = compare_with_controls(own, [shallow])[1]
    assert found.pairs == "segments" and found.paired.difference == pytest.approx(0.02)
    losses = [values["quality"]["segments"]["nll"] for values in (own, shallow)]
    interval = ttest_rel(*losses).confidence_interval(0.95)
    assert (found.paired.low, found.paired.high) == pytest.approx((interval.low, interval.high), rel=0.01)
    assert 0.003 < found.paired.high - found.paired.low < 0.02


def test_random_networks_are_compared_as_networks():
    """The interval of the mean has the half width s t(n - 1) / sqrt(n)."""
    random = [network(f"random_0.5_{n}", nll) for n, nll in enumerate((1.64, 1.66, 1.68), 1)]
    found = compare_with_controls(network("target_0.5", 1.62), random)[1]
    assert found.pairs == "networks" and found.paired.reference == pytest.approx(1.66)
    assert found.paired.standard_error == pytest.approx(0.02 / math.sqrt(3))
    assert found.paired.word == "not told apart" and found.paired.high == pytest.approx(
        -0.04 + 4.3027 * 0.011547, rel=1e-3
    )


def seeds(own: list[float], shallow: list[float]) -> list[dict]:
    named = [("target_0.5", own), ("shallow_0.5", shallow)]
    return [network(f"{name}-seed{k}" if k else name, nll) for name, nlls in named for k, nll in enumerate(nlls)]


def test_seeds_are_compared_in_pairs_of_the_same_seed():
    evaluations = seeds([1.62, 1.72, 1.67], [1.60, 1.71, 1.64, 1.9])
    found = next(found for found in compare_seeds(evaluations) if found.control == "shallow")
    assert (found.network, found.pairs, len(found.references)) == ("target_0.5 (3 seeds)", "seeds", 3)
    interval = ttest_rel([1.62, 1.72, 1.67], [1.60, 1.71, 1.64]).confidence_interval(0.95)
    assert (found.paired.low, found.paired.high) == pytest.approx((interval.low, interval.high))
    assert found.quality == pytest.approx(1.67 / math.log(2))
    assert not compare_seeds(evaluations[:1])


def test_the_table_has_a_row_for_every_comparison():
    names = {"target_0.5": 1.62, "target_0.5-seed1": 1.63, "par": 1.7, **CONTROLS}
    table = control_table([network(name, nll) for name, nll in names.items()])
    rows = {tuple(row["cells"][:2]): row["cells"][2:] for row in table["rows"]}
    assert ("target_0.5 (2 seeds)", "the baseline") in rows and ("par", "the baseline trained on") in rows
    quality, control, change, _, word, pairs = rows["target_0.5", "random networks"]
    assert (quality, control, change) == ("2.337", "2.409 \u00b1 0.008", "-2.99%")
    assert (word, pairs) == ("better", "3 networks")
    assert rows["target_0.5", "the shallow control"][-1] == "segments"
    assert control_table([network("baseline", 1.6)]) is None


def test_the_report_says_that_no_search_beats_the_shallow_control():
    names = {"target_0.5": 1.63, "target_0.3": 1.7, "shallow_0.5": 1.61, "shallow_0.3": 1.6999}
    sentence = shallow_finding([network(name, nll) for name, nll in names.items()])
    assert sentence.startswith("No searched network is better than the shallow control of its latency target: ")
    assert "target_0.5 has +1.24% nll (95% interval +1.04% to +1.44%); target_0.3 has +0.01% nll" in sentence


def test_the_report_names_the_networks_that_beat_the_shallow_control():
    names = {"target_0.5": 1.58, "target_0.3": 1.7, "shallow_0.5": 1.61, "shallow_0.3": 1.69, "lts_0.3": 1.5}
    sentence = shallow_finding([network(name, nll) for name, nll in names.items()])
    assert sentence.startswith("Better than the shallow control of its latency target: target_0.5 has -1.86% nll")
    assert "target_0.3" not in sentence and "lts" not in sentence


def test_several_seeds_count_as_one_network_for_the_shallow_control():
    """Over segments each seed is better; over two seeds the difference is not significant."""
    sentence = shallow_finding(seeds([1.55, 1.599], [1.6, 1.61]))
    assert sentence.startswith("No searched network") and "target_0.5 (2 seeds) has -1.90% nll" in sentence
    assert "seed1" not in sentence
    assert shallow_finding(seeds([1.5], [])) is None
