"""Names of variants: their meaning, and the refusal of wrong names."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy import experiment

from planer.config.variant import FOLDER, PATTERNS, Variant, check_name, parse_variant, spelled
from planer.errors import UserError
from planer.parsing import show


@pytest.mark.parametrize(
    "name, expected",
    [
        ("baseline", Variant("baseline", scratch=True)),
        ("sandwich-seed2", Variant("sandwich", repeat=2)),
        ("par-seed10", Variant("par", repeat=10)),
        ("target_0.5", Variant("target", 0.5)),
        ("target_0.35-seed3", Variant("target", 0.35, repeat=3)),
        ("target_1", Variant("target", 1.0)),
        ("target_0.123456789", Variant("target", 0.123456789)),
        ("par_search", Variant("par_search")),
        ("isoparam_0.75-seed2", Variant("isoparam", 0.75, repeat=2)),
        ("shared_0.6", Variant("shared", 0.6)),
        ("baseline-seed1", Variant("baseline", scratch=True, repeat=1)),
        ("continued", Variant("continued")),
        ("pattern_wide_2-seed1", Variant("pattern_wide_2", repeat=1)),
        ("continued-seed2", Variant("continued", repeat=2)),
        ("par-scratch", Variant("par", scratch=True)),
        ("target_0.5-scratch", Variant("target", 0.5, scratch=True)),
        ("par_search-scratch-seed3", Variant("par_search", scratch=True, repeat=3)),
        ("random_0.5_2-scratch", Variant("random", 0.5, 2, scratch=True)),
        ("shallow_0.5", Variant("shallow", 0.5)),
        ("keep_0.01", Variant("keep", loss=0.01)),
        ("keep_1e-9-seed1", Variant("keep", loss=1e-9, repeat=1)),
        ("lts_0.5", Variant("lts", 0.5)),
        ("random_0.5_3", Variant("random", 0.5, 3)),
        ("random_0.5_12-seed1", Variant("random", 0.5, 12, repeat=1)),
    ],
)
def test_the_meaning_of_a_name(name, expected):
    assert parse_variant(name) == expected


@pytest.mark.parametrize(
    "target", ["0", "0.0", "1.01", "-0.5", "50", "half", "", ".", "0.0009", "0.5.1", "nan", "inf", "1e-1"]
)
def test_a_target_outside_0_to_1_is_refused(target):
    with pytest.raises(UserError, match="from 0.001 to 1") as error:
        parse_variant(f"target_{target}")
    assert repr(target) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name",
    ["baseline-seed0", "baseline-seed", "par-seed-1", "target_0.5-seed1.5", "par-seed1-seed2", "par-seed1000000"],
)
def test_a_seed_that_is_no_positive_number_is_refused(name):
    with pytest.raises(UserError, match="the seed suffix must be -seed1, -seed2, ..., -seed999999;") as error:
        parse_variant(name)
    assert repr(name) in str(error.value)


@pytest.mark.parametrize("name", ["", "Baseline", "target", "target-0.5", "baseline_seed1", "0.5", "baseline "])
def test_the_refusal_of_an_unknown_name_lists_the_allowed_ones(name):
    with pytest.raises(UserError) as error:
        parse_variant(name)
    message = str(error.value)
    assert repr(name) in message and "\n" not in message
    assert all(allowed in message for allowed in (*PATTERNS, "target_<t>", "-seed<k>"))
    assert "(except to baseline, continued and keep_<q>)" in message


@pytest.mark.parametrize(
    "name", ["random_0.5", "random_0.5_", "random_0.5_0", "random_0.5_x", "random_0.5_1_2", "random_0.5_1000000"]
)
def test_a_random_control_without_a_number_is_refused(name):
    with pytest.raises(UserError, match="must be 1, 2, ..., 999999, as in random_0.5_1") as error:
        parse_variant(name)
    assert repr(name) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name, reason",
    [
        ("target_0.5-warm", "unknown suffix -warm"),
        ("target_0.5-inherit", "unknown suffix -inherit"),
        ("target_0.5-upcycle", "unknown suffix -upcycle"),
        ("par-distill-seed1", "unknown suffix -distill"),
        ("target_0.5-scratch-scratch", "from 0.001 to 1"),
        ("baseline-scratch", "baseline has no -scratch"),
        ("continued-scratch", "continued has no -scratch"),
        ("keep_0.01-scratch", "keep_<q> has no -scratch"),
        ("target_0.5-seed1-scratch", "the seed suffix must be"),
        ("sandwich_0.5", "unknown variant"),
        ("pattern_", "unknown variant"),
        ("pattern_Wide", "unknown variant"),
        ("pattern_par", "write it par$"),
        ("pattern_baseline-seed1", "write it baseline-seed1$"),
        ("pattern_" + "abcdefg_" * 13, "names have at most 100 characters"),
        ("pattern_" + "a" * 20, "names must not end in 20 equal parts"),
    ],
)
def test_a_wrong_suffix_is_refused(name, reason):
    with pytest.raises(UserError, match=reason) as error:
        parse_variant(name)
    assert show(name) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("loss", ["0", "0.0", "0.2", "1", "-0.01", "", "x", ".", "1e", "nan", "1e-999", "0.01_1"])
def test_a_loss_outside_0_to_20_percent_is_refused(loss):
    with pytest.raises(UserError, match="must be a number above 0 and below 0.2, as in keep_0.01") as error:
        parse_variant(f"keep_{loss}")
    assert repr(f"keep_{loss}") in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "scratch", "taught", "baseline"),
    [
        ("baseline", True, False, "baseline"),
        ("baseline-seed2", True, False, "baseline-seed2"),
        ("continued", False, False, "baseline"),
        ("target_0.5-seed1", False, True, "baseline-seed1"),
        ("target_0.5-scratch-seed1", True, False, "baseline-seed1"),
        ("shallow_0.5", False, True, "baseline"),
        ("keep_0.01", False, True, "baseline"),
    ],
)
def test_the_start_and_the_teacher_of_a_variant(name, scratch, taught, baseline):
    variant = parse_variant(name)
    assert (variant.scratch, variant.is_taught, variant.baseline) == (scratch, taught, baseline)


def test_variants_of_the_search_and_variants_of_a_pattern():
    searched = ("target_0.5", "isoparam_0.5", "par_search")
    patterns = ("baseline", "continued", "sandwich", "par", "pattern_wide")
    names = (*patterns, "lts_0.5", "random_0.5_1", "keep_0.1", *searched)
    assert tuple(name for name in names if parse_variant(name).searched) == searched
    assert [parse_variant(name).pattern for name in names] == [
        *("baseline", "baseline", "sandwich", "par", "wide"),
        *[None] * 6,
    ]


@pytest.mark.parametrize(
    "name, canonical",
    [
        ("target_0.50", "target_0.5"),
        ("target_.5", "target_0.5"),
        ("target_00.5", "target_0.5"),
        ("target_1.0", "target_1"),
        ("target_1.", "target_1"),
        ("target_\u0660.\u0665", "target_0.5"),
        ("target_0.12345678901234567890", "target_0.12345678901234568"),
        ("isoparam_0.750-scratch", "isoparam_0.75-scratch"),
        ("baseline-seed01", "baseline-seed1"),
        ("baseline-seed\u0661", "baseline-seed1"),
        ("random_0.5_01", "random_0.5_1"),
        ("random_0.50_1-seed2", "random_0.5_1-seed2"),
        ("keep_0.010", "keep_0.01"),
        ("keep_.01", "keep_0.01"),
        ("keep_1e-2", "keep_0.01"),
        ("keep_0.000000001", "keep_1e-9"),
        ("keep_1e-09", "keep_1e-9"),
        ("keep_1.5e-05-seed01", "keep_1.5e-5-seed1"),
    ],
)
def test_another_spelling_of_a_name_is_refused(name, canonical):
    """Each variant has one name and so one folder."""
    with pytest.raises(UserError, match=f"write it {re.escape(canonical)}$") as error:
        parse_variant(name)
    assert repr(name) in str(error.value) and "\n" not in str(error.value)
    assert parse_variant(canonical).name == canonical


@given(st.floats(0.001, 1), st.integers(0, 99))
def test_a_name_of_any_target_and_seed_is_parsed_to_them(target, repeat):
    name = f"target_{spelled(target)}" + (f"-seed{repeat}" if repeat else "")
    assert parse_variant(name) == Variant("target", target, repeat=repeat)
    assert re.fullmatch(FOLDER, name)


@given(st.floats(1e-12, 0.2, exclude_max=True))
def test_a_name_of_any_loss_is_parsed_to_it(loss):
    name = f"keep_{spelled(loss)}"
    assert parse_variant(name) == Variant("keep", loss=loss)
    assert re.fullmatch(FOLDER, name)


def test_the_name_of_given_parts():
    assert Variant("target", 0.5, scratch=True, repeat=2).name == "target_0.5-scratch-seed2"
    assert Variant("random", 0.5, 3).name == "random_0.5_3" and Variant("keep", loss=0.01).name == "keep_0.01"
    assert Variant("baseline", scratch=True, repeat=1).name == "baseline-seed1"


def test_the_spelling_of_a_number():
    assert [spelled(x) for x in (0.5, 1, 1.0, 0.75, 0.123456789, 1e-04, 1e-05)] == [
        *("0.5", "1", "1", "0.75", "0.123456789", "0.0001", "1e-5")
    ]


@pytest.mark.parametrize("name", ["demo", "enwik8-mini", "wt103.v2", "A_b+c", "7"])
def test_allowed_names(name):
    check_name("experiment", name)


@pytest.mark.parametrize("name", ["", "$(touch x)", "a b", "-rf", ".hidden", "..", "a/b", "a;b", "a\n", "\u00e4"])
@pytest.mark.parametrize("what", ["dataset", "experiment", "variant"])
def test_a_name_with_other_characters_is_refused(what, name):
    with pytest.raises(UserError, match=f"^{what} .*names hold letters, digits") as error:
        check_name(what, name)
    assert repr(name) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("what", ["dataset", "experiment", "variant"])
def test_a_long_or_repetitive_name_is_refused(what):
    for name, reason in (("x1" * 51, "at most 100 characters"), ("ab" * 20, "must not end in 20 equal parts")):
        with pytest.raises(UserError, match=f"^{what} .*: names .*{reason}") as error:
            check_name(what, name)
        assert "\n" not in str(error.value)
    check_name(what, "ab" * 19 + "c")
    check_name(what, "abcdefghij" * 10)


@pytest.mark.parametrize("name", ["data", "models", "mlartifacts", "mlflow.db", "slurm"])
def test_a_name_of_a_file_in_results_is_refused_for_an_experiment(name):
    with pytest.raises(UserError, match="give the experiment another name"):
        check_name("experiment", name)
    check_name("variant", name)


def test_patterns_of_the_configuration():
    patterns = experiment(patterns={"others": {"wide": "(sf)x2"}}).patterns
    assert patterns.of(parse_variant("pattern_wide-seed1").pattern) == "(sf)x2"
    assert patterns.of("par") == patterns.par
    with pytest.raises(UserError, match=r"variant pattern_deep: patterns\.others has no deep; it has: wide"):
        patterns.of(parse_variant("pattern_deep").pattern)
    with pytest.raises(UserError, match=r"patterns\.others: 'Wide' must hold small letters"):
        experiment(patterns={"others": {"Wide": "(sf)x2"}})
    with pytest.raises(UserError, match=r"patterns\.others: 'pattern_aaaa.*names have at most 100 characters"):
        experiment(patterns={"others": {"a" * 93: "(sf)x2"}})
    for name in ("baseline", "par"):
        with pytest.raises(UserError, match=rf"patterns\.others: the name {name} is taken; take another one than"):
            experiment(patterns={"others": {name: "(sf)x2"}})
    continued = experiment(patterns={"others": {"continued": "(sf)x2"}}).patterns
    assert continued.of(parse_variant("pattern_continued").pattern) == "(sf)x2", "continued has the pattern baseline"
    with pytest.raises(UserError, match=r"patterns\.others\.wide: .*unknown block 'x'"):
        experiment(patterns={"others": {"wide": "(sx)x2"}})
