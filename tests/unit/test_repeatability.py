"""Repeats of a search: agreement, spread, and the test of non-inferiority to the baseline."""

from __future__ import annotations

import math

import numpy as np
import pytest
from made_up import evaluation
from scipy.stats import t as student
from scipy.stats import ttest_ind
from toy import experiment

from planer.errors import UserError
from planer.evaluation.repeatability import (
    agreement,
    non_inferiority,
    power_of,
    repeatability,
    repeats_needed,
    spread,
    upper_bound,
    welch,
)
from planer.files import write_json
from planer.report.repeatability import repeatability_section

VARIANT, BASELINE = [1.62, 1.60, 1.61], [1.600, 1.605, 1.592]


def test_agreement_of_three_choices():
    choices = [
        ["skip", "moe_top1", "attention_1"],
        ["skip", "moe_top1", "attention_2"],
        ["skip", "skip", "attention_4"],
    ]
    assert agreement(choices) == {"mean": pytest.approx(4 / 9), "positions": [1, pytest.approx(1 / 3), 0]}


def test_spread_of_three_values():
    values = spread([1.0, 2.0, 6.0])
    assert values == {
        "mean": 3,
        "standard_deviation": pytest.approx(math.sqrt(7)),
        "min": 1,
        "max": 6,
        "values": [1, 2, 6],
    }


@pytest.mark.parametrize("factor", [1.0, 1.005, 1.1])
@pytest.mark.parametrize("variant, baseline", [(VARIANT, BASELINE), ([3.0, 5.0], [4.0, 4.1, 3.7, 4.4])])
def test_welch_equals_scipy_with_a_scaled_baseline(variant, baseline, factor):
    expected = ttest_ind(variant, factor * np.array(baseline), equal_var=False, alternative="less")
    assert welch(variant, baseline, factor) == pytest.approx(
        (expected.statistic, expected.df, expected.pvalue), rel=1e-9
    )


def test_non_inferiority_to_a_constant_baseline():
    """It is Student's test of the variant's mean, 2.5, against the limit 2.75."""
    found = non_inferiority([2.0, 2.5, 3.0], [2.5, 2.5, 2.5], margin=0.1, alpha=0.05, power=0.8)
    error = 0.5 / math.sqrt(3)
    assert found["estimate"] == 0 and found["n"] == {"variant": 3, "baseline": 3}
    assert found["statistic"] == pytest.approx(-0.25 / error) and found["degrees_of_freedom"] == pytest.approx(2)
    assert found["p_value"] == pytest.approx(student.cdf(-0.25 / error, 2))
    assert found["upper_bound"] == pytest.approx(student.ppf(0.95, 2) * error / 2.5)
    assert found["verdict"] == "not shown to be non-inferior"
    assert non_inferiority([2.49, 2.5, 2.51], [2.5] * 3, 0.1, 0.05, 0.8)["verdict"] == "non-inferior"


def test_the_bound_is_below_the_margin_if_and_only_if_the_test_rejects():
    random = np.random.default_rng(0)
    verdicts = set()
    for _ in range(60):
        variant, baseline = random.normal(1.6, 0.01, 3), random.normal(1.6, 0.004, 4)
        found = non_inferiority(variant, baseline, margin=0.008, alpha=0.05, power=0.8)
        assert (found["upper_bound"] < 0.008) == (found["verdict"] == "non-inferior") == (found["p_value"] < 0.05)
        assert welch(variant, baseline, 1 + found["upper_bound"])[2] == pytest.approx(0.05, abs=1e-6)
        verdicts.add(found["verdict"])
    assert len(verdicts) == 2


def test_a_baseline_of_unknown_sign_gives_no_bound():
    assert upper_bound([1.0, 1.1], [0.1, 2.0], alpha=0.05) is None


def test_repeats_without_variance_are_refused():
    with pytest.raises(UserError, match="same quality"):
        welch([1.6, 1.6], [1.6, 1.6], 1.005)


def rejected(random, repeats, variant_mean, variant_sd, baseline_sd, margin, experiments=40_000):
    """Share of simulated experiments in which the test shows non-inferiority to a baseline of mean 1, at alpha 0.05."""
    variant = random.normal(variant_mean, variant_sd, (experiments, repeats))
    baseline = (1 + margin) * random.normal(1.0, baseline_sd, (experiments, repeats))
    return (ttest_ind(variant, baseline, axis=1, equal_var=False, alternative="less").pvalue < 0.05).mean()


@pytest.mark.parametrize("repeats, variant_sd, baseline_sd", [(3, 0.004, 0.004), (3, 0.008, 0.002), (10, 0.01, 0.003)])
def test_size_by_simulation(repeats, variant_sd, baseline_sd):
    """A variant that is worse by exactly the margin passes in about 5 % of the experiments."""
    size = rejected(np.random.default_rng(1), repeats, 1.005, variant_sd, baseline_sd, 0.005)
    assert 0.025 < size < 0.065


@pytest.mark.parametrize(
    "repeats, variant_sd, baseline_sd", [(2, 0.002, 0.002), (3, 0.003, 0.003), (3, 0.004, 0.001), (8, 0.005, 0.002)]
)
def test_power_by_simulation(repeats, variant_sd, baseline_sd):
    power = power_of(repeats, variant_sd**2, baseline_sd**2, 1.0, 0.005, 0.05)
    assert 0.1 < power < 0.99
    assert power == pytest.approx(
        rejected(np.random.default_rng(2), repeats, 1.0, variant_sd, baseline_sd, 0.005), abs=0.01
    )


def test_repeats_needed_are_the_smallest_number():
    needed = repeats_needed(VARIANT, BASELINE, margin=0.005, alpha=0.05, power=0.8)
    assert 3 < needed < 50
    variances = np.var(VARIANT, ddof=1), np.var(BASELINE, ddof=1)
    before, at = (power_of(n, *variances, float(np.mean(BASELINE)), 0.005, 0.05) for n in (needed - 1, needed))
    assert before < 0.8 <= at
    scale = np.mean(BASELINE)
    deviations = [math.sqrt(variance) / scale for variance in variances]
    assert rejected(np.random.default_rng(3), needed, 1.0, *deviations, 0.005) == pytest.approx(at, abs=0.01)


def test_repeats_needed_with_little_noise_and_with_a_tiny_margin():
    quiet = [1.0, 1.0 + 1e-9]
    assert repeats_needed(quiet, quiet, margin=0.005, alpha=0.05, power=0.8) == 2
    assert repeats_needed([1.0, 2.0], [1.0, 2.0], margin=1e-6, alpha=0.05, power=0.8) is None


@pytest.fixture
def report() -> dict:
    patterns = ("s4fim1s2ifi", "s4fim1s2iff", "s4fim2s2iff")
    names = ("target_0.5", "target_0.5-seed1", "target_0.5-seed2")
    shares = (0.51, 0.50, 0.49)
    variant = [
        evaluation(name, pattern, nll, share, 0.5)
        for name, pattern, nll, share in zip(names, patterns, VARIANT, shares, strict=True)
    ]
    baseline = [evaluation(f"baseline-seed{k}", "(s8f)x4", nll, 1.0) for k, nll in enumerate(BASELINE)]
    return repeatability(experiment().repeatability, variant, baseline)


def test_values_of_the_report(report, tmp_path):
    assert report["experiment"] == "demo" and report["variant"] == "target_0.5"
    assert report["networks"][2] == {"variant": "target_0.5-seed2", "pattern": "s4fim2s2i(f)x2"}
    assert report["agreement"]["positions"] == [1, 1, 1, pytest.approx(1 / 3), 1, 1, 1, pytest.approx(1 / 3)]
    assert report["latency"]["measured"]["mean"] == pytest.approx(0.5)
    assert report["latency"]["measured"]["standard_deviation"] == pytest.approx(0.01)
    assert report["latency"]["table"]["max"] == pytest.approx(0.51 * 0.97 / 0.98)
    quality = report["quality"]
    assert quality["unit"] == "bpc" and quality["variant"]["mean"] == pytest.approx(1.61 / math.log(2))
    assert quality["relative"]["min"] == pytest.approx(1.60 / np.mean(BASELINE))
    values = (quality[group]["values"] for group in ("variant", "baseline"))
    assert report["non_inferiority"] == non_inferiority(*values, 0.005, 0.05, 0.8)
    write_json(tmp_path / "repeatability.json", report)


def test_text_and_tables_of_the_section(report):
    page = repeatability_section(report)
    assert "same block at 83% of the positions" in page["text"] and "not shown to be non-inferior" in page["text"]
    assert page["tables"][0]["rows"][4]["cells"] == [
        "measured latency over the baseline's",
        "0.500",
        "0.010",
        "0.490",
        "0.510",
    ]
    for table in page["tables"]:
        assert all(len(row["cells"]) == len(table["columns"]) for row in table["rows"])


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("variant", "baseline", "other than baseline"),
        ("variant", "target_0.5-seed1", "without -seed<k>"),
        ("variant", "target_2", "target_2"),
        ("seeds", 1, "from 2 to 1,000"),
        ("margin", 0, "above 0"),
        ("power", 1, "above 0 and below 1"),
        ("alpha", -0.1, "above 0"),
    ],
)
def test_wrong_settings_are_refused(key, value, words):
    with pytest.raises(UserError, match=words) as error:
        experiment(repeatability={key: value})
    assert "repeatability" in str(error.value) and "\n" not in str(error.value)


def test_names_of_repeats():
    repeats = experiment(repeatability={"seeds": 3}).repeatability.repeats
    assert repeats("par") == ["par", "par-seed1", "par-seed2"]
