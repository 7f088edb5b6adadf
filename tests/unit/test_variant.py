"""Names of variants: what they mean, and one line for those that mean nothing."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planer.files import UserError
from planer.variant import FOLDER, PATTERNS, Variant, check_name, parse_variant, spelled


@pytest.mark.parametrize(
    "name, expected",
    [
        ("baseline", Variant("baseline", "baseline")),
        ("sandwich-seed2", Variant("sandwich-seed2", "sandwich", repeat=2)),
        ("par-seed10", Variant("par-seed10", "par", repeat=10)),
        ("target_0.5", Variant("target_0.5", "target", 0.5)),
        ("target_0.35-seed3", Variant("target_0.35-seed3", "target", 0.35, repeat=3)),
        ("target_1", Variant("target_1", "target", 1.0)),
        ("target_0.123456789", Variant("target_0.123456789", "target", 0.123456789)),
        ("par_search", Variant("par_search", "par_search")),
        ("isoparam_0.75-seed2", Variant("isoparam_0.75-seed2", "isoparam", 0.75, repeat=2)),
        ("shared_0.6", Variant("shared_0.6", "shared", 0.6)),
        ("target_0.5-inherit", Variant("target_0.5-inherit", "target", 0.5, start="inherit")),
        ("shared_0.6-inherit", Variant("shared_0.6-inherit", "shared", 0.6, start="inherit")),
        ("par-distill-seed3", Variant("par-distill-seed3", "par", start="distill", repeat=3)),
        ("lts_0.5", Variant("lts_0.5", "lts", 0.5)),
        ("random_0.5_3", Variant("random_0.5_3", "random", 0.5, 3)),
        ("random_0.5_12-seed1", Variant("random_0.5_12-seed1", "random", 0.5, 12, repeat=1)),
    ],
)
def test_names(name, expected):
    assert parse_variant(name) == expected


@pytest.mark.parametrize(
    "target", ["0", "0.0", "1.01", "-0.5", "50", "half", "", ".", "0.0009", "0.5.1", "nan", "inf", "1e-1"]
)
def test_targets_outside_0_to_1(target):
    with pytest.raises(UserError, match="from 0.001 to 1") as error:
        parse_variant(f"target_{target}")
    assert repr(target) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name", ["baseline-seed0", "baseline-seed", "par-seed-1", "target_0.5-seed1.5", "par-seed1-seed2"]
)
def test_seeds_that_are_no_positive_number(name):
    with pytest.raises(UserError, match="the seed suffix must be -seed1, -seed2") as error:
        parse_variant(name)
    assert repr(name) in str(error.value)


@pytest.mark.parametrize("name", ["", "Baseline", "target", "target-0.5", "baseline_seed1", "0.5", "baseline "])
def test_unknown_names_are_told_what_is_allowed(name):
    with pytest.raises(UserError) as error:
        parse_variant(name)
    message = str(error.value)
    assert repr(name) in message and "\n" not in message
    assert all(allowed in message for allowed in (*PATTERNS, "target_<t>", "-seed<k>"))


@pytest.mark.parametrize("name", ["random_0.5", "random_0.5_", "random_0.5_0", "random_0.5_x", "random_0.5_1_2"])
def test_random_controls_are_numbered(name):
    with pytest.raises(UserError, match="must be 1, 2, ..., as in random_0.5_1") as error:
        parse_variant(name)
    assert repr(name) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name, reason",
    [
        ("target_0.5-warm", "unknown suffix -warm"),
        ("baseline-distill", "what warm starts begin from"),
        ("lts_0.5-inherit", "only a searched network can inherit"),
        ("target_0.5-seed1-inherit", "the seed suffix must be"),
    ],
)
def test_warm_starts_that_make_no_sense(name, reason):
    with pytest.raises(UserError, match=reason) as error:
        parse_variant(name)
    assert repr(name) in str(error.value) and "\n" not in str(error.value)


def test_the_original_of_a_warm_start():
    names = {
        "target_0.5-inherit-seed2": "target_0.5-seed2",
        "par-distill": "par",
        "target_0.5-seed1": "target_0.5-seed1",
    }
    assert {name: parse_variant(name).original for name in names} == names


def test_what_is_searched_and_what_is_a_pattern():
    searched = ("target_0.5", "isoparam_0.5", "par_search")
    names = ("baseline", "sandwich", "par", "lts_0.5", "random_0.5_1", *searched)
    assert tuple(name for name in names if parse_variant(name).searched) == searched
    assert [parse_variant(name).pattern for name in names] == ["baseline", "sandwich", "par"] + [None] * 5


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
        ("isoparam_0.750-inherit", "isoparam_0.75-inherit"),
        ("baseline-seed01", "baseline-seed1"),
        ("baseline-seed\u0661", "baseline-seed1"),
        ("random_0.5_01", "random_0.5_1"),
        ("random_0.50_1-seed2", "random_0.5_1-seed2"),
    ],
)
def test_every_variant_has_one_name(name, canonical):
    """Two names would be two folders, trained twice."""
    with pytest.raises(UserError, match=f"write it {re.escape(canonical)}$") as error:
        parse_variant(name)
    assert repr(name) in str(error.value) and "\n" not in str(error.value)
    assert parse_variant(canonical).name == canonical


@given(st.floats(0.001, 1), st.integers(0, 99))
def test_every_target_and_seed_reads_back(target, repeat):
    name = f"target_{spelled(target)}" + (f"-seed{repeat}" if repeat else "")
    assert parse_variant(name) == Variant(name, "target", target, repeat=repeat)
    assert re.fullmatch(FOLDER, name)


def test_numbers_have_one_spelling():
    assert [spelled(x) for x in (0.5, 1, 1.0, 0.75, 0.123456789, 1e-05)] == [
        *("0.5", "1", "1", "0.75", "0.123456789", "0.00001")
    ]


@pytest.mark.parametrize("name", ["demo", "enwik8-mini", "wt103.v2", "A_b+c", "7"])
def test_names_that_are_allowed(name):
    check_name("experiment", name)


@pytest.mark.parametrize("name", ["", "$(touch x)", "a b", "-rf", ".hidden", "..", "a/b", "a;b", "a\n", "\u00e4"])
@pytest.mark.parametrize("what", ["dataset", "experiment", "variant"])
def test_names_that_a_shell_could_misread(what, name):
    with pytest.raises(UserError, match=f"^{what} .*names hold letters, digits") as error:
        check_name(what, name)
    assert repr(name) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["data", "models", "mlartifacts", "mlflow.db", "slurm"])
def test_names_that_experiments_must_leave_free(name):
    with pytest.raises(UserError, match="give the experiment another name"):
        check_name("experiment", name)
    check_name("variant", name)
