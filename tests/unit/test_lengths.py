"""The check of texts and of the search before any job."""

from __future__ import annotations

import pytest
from toy import experiment

from planer.config.corpora import Corpus
from planer.config.lengths import check_lengths
from planer.errors import UserError

CUTS = {"proposers": {"solver": 0, "argmax": 0}}
"""Proposers that need no supernet."""
RANDOM = {"proposers": {"shallow": 0, "edited": 0, "solver": 0, "argmax": 0, "random": 1}}
"""Proposers that read no text."""


def check(valid: int = 1_000, tokens: bool = True, **overlay: object) -> None:
    """Of the tiny experiment on a text with this many validation tokens.  tokens: whether they are known."""
    corpus = Corpus("text", 256, "byte", size=20 * valid, tokens=(20_000, valid, 4_000) if tokens else None)
    check_lengths(experiment(**overlay), corpus)


def refusal(**given: object) -> str:
    with pytest.raises(UserError) as error:
        check(**given)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_tiny_experiment_passes():
    check()


@pytest.mark.parametrize("section", ["search", "retrain", "distill", "sparsify", "train_routers"])
def test_a_validation_reads_16_streams_with_the_lengths_of_its_stage(section):
    """63 segments of 32 tokens in the memory are the last 2,016 of one of 15 other streams of 135."""
    line = refusal(valid=2_159, **{section: {"mem_len": 2_000}})
    assert "the valid text has at most 2,159 tokens" in line and f"{section} needs 2,160; lower" in line
    check(valid=2_160, **{section: {"mem_len": 2_000}})


def test_without_a_supernet_nothing_is_scored_with_the_lengths_of_the_search():
    check(search={"mem_len": 2_000}, candidates=CUTS)


@pytest.mark.parametrize(
    ("section", "proposers"), [("search", {"shallow": 0, "edited": 0}), ("distill", {"solver": 0, "argmax": 0})]
)
def test_too_few_tokens_for_the_scores_of_candidates(section, proposers):
    few = {"tokens": 47, "proposers": proposers}
    assert f"candidates.tokens: 47 is less than the 48 that {section} needs; raise it" in refusal(candidates=few)
    check(candidates=few | {"tokens": 48})
    check(candidates=RANDOM | {"tokens": 1})


@pytest.mark.parametrize(
    "search", [{"steps": 2}, {"alpha_share": 0.0}, {"frozen_share": 0.8}, {"epoch_steps": 0, "steps": 157}]
)
def test_a_search_without_architecture_steps(search):
    """157 steps read the text once."""
    line = refusal(search=search)
    assert "epochs of" in line and line.endswith("or raise search.alpha_share or search.steps")
    check(search=search, candidates=CUTS)


def test_the_length_of_an_epoch_may_be_known_only_later():
    check(search={"epoch_steps": 0, "steps": 162})
    check(search={"epoch_steps": 0, "steps": 20}, tokens=False)
