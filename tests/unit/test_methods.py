"""Changes of the configuration by variant."""

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


def test_changes_of_the_search_by_variant():
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
def test_controls_and_methods_of_papers_have_one_proposer(variant, proposers):
    found = candidates_config(CANDIDATES, parse_variant(variant))
    paper = {"scores": "alpha", "corrections": 0} if "argmax" in proposers else {}
    assert found == dataclasses.replace(CANDIDATES, proposers=proposers, **paper)


@pytest.mark.parametrize("variant", ["target_0.5", "isoparam_0.75", "shared_0.6", "target_0.5-seed2", "keep_0.01"])
def test_other_variants_have_the_configured_candidates(variant):
    assert candidates_config(CANDIDATES, parse_variant(variant)) is CANDIDATES
    assert config_of(CONFIG, parse_variant(variant)).candidates is CONFIG.candidates


def test_a_shallow_control_has_a_proposer_where_none_is_configured():
    none = dataclasses.replace(CANDIDATES, proposers={"shallow": 0, "solver": 1})
    assert candidates_config(none, parse_variant("shallow_0.5")).proposers == {"shallow": 1}


def test_variants_that_need_a_supernet():
    needed = ("target_0.5", "isoparam_0.5", "shared_0.6", "target_0.5-scratch", "par_search")
    unneeded = ("shallow_0.5", "random_0.5_1", "lts_0.5", "keep_0.01")
    assert all(needs_supernet(CANDIDATES, parse_variant(name)) for name in needed)
    assert not any(needs_supernet(CANDIDATES, parse_variant(name)) for name in unneeded)
    without = dataclasses.replace(CANDIDATES, proposers={"shallow": 2, "edited": 2, "solver": 0, "argmax": 0})
    assert not needs_supernet(without, parse_variant("target_0.5"))
    assert needs_supernet(without, parse_variant("target_0.5-scratch"))


def test_only_par_search_stops_early():
    names = ("par_search", "par_search-scratch", "target_0.5")
    assert [stop_share(parse_variant(name)) for name in names] == [PAR_STOP, PAR_STOP, 0]


@pytest.mark.parametrize(
    ("settings", "needed"),
    [({}, True), ({"start": "scratch"}, True), ({"distill": 0.0}, True), ({"start": "scratch", "distill": 0.0}, False)],
)
def test_a_search_needs_the_baseline_for_its_start_or_for_distillation(settings, needed):
    assert experiment(search=settings).search.needs_parent == needed
