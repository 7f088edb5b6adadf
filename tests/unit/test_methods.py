"""What the searches of other variants change in the configuration."""

from __future__ import annotations

import dataclasses

import pytest
from toy import experiment

from planer.config.variant import parse_variant
from planer.search.methods import PAR_STOP, candidates_config, config_of, needs_supernet, search_config, stop_share

CONFIG = experiment()
CANDIDATES = dataclasses.replace(
    CONFIG.candidates, proposers={"shallow": 3, "edited": 2, "solver": 1, "argmax": 1, "random": 1}, corrections=2
)
PAPER = {"start": "scratch", "distill": 0.0, "sampling": "plain", "weight_sharing": "none"}


def changes(variant: str, scratch: bool = False) -> dict[str, object]:
    found = search_config(CONFIG.search, dataclasses.replace(parse_variant(variant), scratch=scratch))
    return {key: value for key, value in vars(found).items() if value != getattr(CONFIG.search, key)}


def test_a_search_is_the_configured_one_unless_the_variant_says_otherwise():
    assert changes("target_0.5") == {}
    assert changes("isoparam_0.5") == {}
    assert changes("target_0.5", scratch=True) == PAPER
    assert changes("par_search") == {"latency_weight": 0.0}
    assert changes("par_search", scratch=True) == PAPER | {"latency_weight": 0.0}


@pytest.mark.parametrize("variant", ["isoparam_0.5", "par_search"])
def test_other_methods_have_their_own_design_space(variant):
    config = config_of(CONFIG, parse_variant(variant))
    assert config.design_space == getattr(CONFIG.search_methods, variant.removesuffix("_0.5")) != CONFIG.design_space
    assert config.retrain == CONFIG.retrain
    assert config_of(CONFIG, parse_variant("target_0.5")).design_space == CONFIG.design_space


@pytest.mark.parametrize(
    ("variant", "proposers"),
    [
        ("shallow_0.5", {"shallow": 3}),
        ("shallow_0.5-scratch", {"shallow": 3}),
        ("random_0.5_7", {"random": 1}),
        ("lts_0.5-seed1", {"largest": 1}),
        ("par_search", {"argmax": 1}),
        ("target_0.5-scratch", {"argmax": 1}),
        ("isoparam_0.5-scratch", {"argmax": 1}),
        ("shared_0.5-scratch", {"argmax": 1}),
        ("par_search-scratch", {"argmax": 1}),
    ],
)
def test_controls_and_papers_have_one_proposer(variant, proposers):
    found = candidates_config(CANDIDATES, parse_variant(variant))
    papers = {"scores": "alpha", "corrections": 0} if "argmax" in proposers else {}
    assert found == dataclasses.replace(CANDIDATES, proposers=proposers, **papers)


@pytest.mark.parametrize("variant", ["target_0.5", "isoparam_0.75", "shared_0.6", "target_0.5-seed2", "keep_0.01"])
def test_all_others_have_the_candidates_that_are_configured(variant):
    assert candidates_config(CANDIDATES, parse_variant(variant)) is CANDIDATES
    assert config_of(CONFIG, parse_variant(variant)).candidates is CONFIG.candidates


def test_a_shallow_control_exists_where_no_shallow_candidate_is_wanted():
    none = dataclasses.replace(CANDIDATES, proposers={"shallow": 0, "solver": 1})
    assert candidates_config(none, parse_variant("shallow_0.5")).proposers == {"shallow": 1}


def test_what_needs_a_supernet():
    needed = ("target_0.5", "isoparam_0.5", "shared_0.6", "target_0.5-scratch", "par_search")
    unneeded = ("shallow_0.5", "random_0.5_1", "lts_0.5", "keep_0.01")
    assert all(needs_supernet(CANDIDATES, parse_variant(name)) for name in needed)
    assert not any(needs_supernet(CANDIDATES, parse_variant(name)) for name in unneeded)
    without = dataclasses.replace(CANDIDATES, proposers={"shallow": 2, "edited": 2, "solver": 0, "argmax": 0})
    assert not needs_supernet(without, parse_variant("target_0.5"))
    assert needs_supernet(without, parse_variant("target_0.5-scratch"))


def test_only_pars_search_stops_early():
    names = ("par_search", "par_search-scratch", "target_0.5")
    assert [stop_share(parse_variant(name)) for name in names] == [PAR_STOP, PAR_STOP, 0]


@pytest.mark.parametrize(
    ("settings", "needed"),
    [({}, True), ({"start": "scratch"}, True), ({"distill": 0.0}, True), ({"start": "scratch", "distill": 0.0}, False)],
)
def test_a_search_needs_the_baseline_to_start_from_it_or_to_learn_from_it(settings, needed):
    assert experiment(search=settings).search.needs_parent == needed
