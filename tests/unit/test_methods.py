"""What the searches of other variants change in the configuration."""

from __future__ import annotations

import dataclasses

import pytest
from toy import experiment

from planer.search.methods import config_of, search_config
from planer.variant import parse_variant

CONFIG = experiment()
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
    assert config.design_space == getattr(CONFIG.arms, variant.removesuffix("_0.5")) != CONFIG.design_space
    assert config.retrain == CONFIG.retrain
    assert config_of(CONFIG, parse_variant("target_0.5")).design_space == CONFIG.design_space


@pytest.mark.parametrize(
    ("settings", "needed"),
    [({}, True), ({"start": "scratch"}, True), ({"distill": 0.0}, True), ({"start": "scratch", "distill": 0.0}, False)],
)
def test_a_search_needs_the_baseline_to_start_from_it_or_to_learn_from_it(settings, needed):
    assert experiment(search=settings).search.needs_parent == needed
