"""Candidates are proposed and measured, and proxy training chooses one."""

from __future__ import annotations

import dataclasses
import statistics
from collections import Counter

import pytest
import torch
from planted import losses, named, space
from toy import VOCAB_SIZE, experiment, latency_table

from planer.config.variant import parse_variant
from planer.errors import UserError
from planer.search import candidates
from planer.search.candidates import TOLERANCE, Measured, choose, measured_candidates
from planer.search.methods import config_of
from planer.search.network import chosen_network, space_of
from planer.search.space import Candidate
from planer.seed import derive_seed

pytestmark = pytest.mark.slow
SOME = {"shallow": 2, "edited": 2, "random": 2}


def candidates_of(proposers=SOME, target=0.5, measured=None, corrections=3, **known):
    """Candidates of the proposers.  measured: a function from estimated to measured latency."""
    networks = space(target, proposers=proposers, corrections=corrections, **known)
    full, asked = networks.limits[0], []

    def measurement(network):
        options = tuple(networks.specs.index(block) for block in network.blocks)
        asked.append(options)
        return measured(full.of(options) / full.baseline)

    return measured_candidates(networks, measurement if measured else None), asked, networks


def test_every_proposer_gives_the_wanted_number():
    found, _, networks = candidates_of()
    assert [c.source for c in found.candidates.values()] == [name for name in SOME for _ in range(2)]
    assert not found.rejected and not found.rounds and networks.limits[0].share == pytest.approx(0.5)
    assert all(networks.allows(options) for options in found.candidates)


def test_proposers_with_0_give_nothing():
    found, _, _ = candidates_of({"shallow": 1, "solver": 0, "argmax": 0})
    assert len(found.candidates) == 1


@pytest.mark.parametrize("bias", [0.6, 1.0, 1 + 0.9 * TOLERANCE])
def test_a_network_that_is_fast_enough_is_a_candidate(bias):
    found, asked, networks = candidates_of(measured=lambda estimated: bias * estimated)
    assert list(found.candidates) == asked and len(asked) == 6
    assert networks.limits[0].share == pytest.approx(0.5), "faster networks do not change the budget"
    for entry in found.rounds:
        assert entry["budget"] == pytest.approx(0.5)
        assert entry["measured"] == pytest.approx(bias * entry["estimated"])


def test_a_bias_lowers_the_budget_and_networks_are_proposed_again():
    """All networks are 10 % slower than estimated, so that the next budget of every proposer is 0.5 / 1.1."""
    found, asked, networks = candidates_of(measured=lambda estimated: 1.1 * estimated)
    assert networks.limits[0].share == pytest.approx(0.5), "the target stays"
    assert len(found.candidates) == 6
    for options in found.candidates:
        assert found.latency(options) <= 0.5 * (1 + TOLERANCE)
    budgets = {round(entry["budget"], 6) for entry in found.rounds}
    assert budgets == {0.5, round(0.5 / 1.1, 6)}
    slow = [options for options in asked if options in found.rejected]
    assert slow and all(found.ratios[options] > 0.5 * (1 + TOLERANCE) for options in slow)
    assert len(slow) <= 3, "the first network that is too slow corrects its proposer"
    assert len(set(asked)) == len(asked), "no network is measured twice"


@pytest.mark.parametrize("biases", [[1.25], [1.0, 1.25, 3.0], [1.0, 1.5], [0.8, 0.9]])
def test_the_budget_follows_the_median_bias_up_to_the_target(biases):
    networks = space(0.5)
    found = Measured(networks.limits[0], None)
    for number, bias in enumerate(biases):
        options = (number + 1, *[5] * 7)
        found.ratios[options] = bias * found.estimated(options)
        found.rejected[options] = Candidate(options, "shallow")
    expected = min(0.5, 0.5 / statistics.median(biases))
    assert found.corrected("shallow").share == pytest.approx(expected, rel=1e-6)
    same = dataclasses.replace(found.corrected("shallow"), budget=networks.limits[0].budget)
    assert same == found.corrected("random") == networks.limits[0]


def test_corrections_are_limited():
    """Every network takes more than 0.6: no budget helps."""
    found, _, _ = candidates_of(measured=lambda estimated: 0.6 + 0.1 * estimated, corrections=2)
    assert not found.candidates
    by_source = Counter(found.rejected[tuple(entry["options"])].source for entry in found.rounds)
    assert all(by_source[name] <= 2 + candidates.ATTEMPTS * 2 for name in SOME), "the last budget has all attempts"


def test_at_most_three_attempts_per_candidate_under_the_last_budget():
    _, asked, _ = candidates_of({"random": 2}, measured=lambda estimated: 9.0, corrections=0)
    assert len(asked) == candidates.ATTEMPTS * 2


def test_a_network_of_two_proposers_is_one_candidate():
    """It is measured once and has the source of the first proposer."""
    found, asked, networks = candidates_of({"shallow": 3, "edited": 50}, 0.7, lambda estimated: estimated)
    assert len(asked) == len(set(asked)) == len(found.candidates)
    again = found.add(Candidate(asked[0], "edited"), networks)
    assert again is False and found.candidates[asked[0]].source == "shallow" and len(found.ratios) == len(asked)


def test_the_argmax_is_a_candidate_only_within_the_limits():
    alpha = torch.zeros(8, 8)
    alpha[:, 4] = 3.0
    found, asked, _ = candidates_of({"shallow": 1, "argmax": 1}, measured=lambda estimated: estimated, alpha=alpha)
    assert [c.source for c in found.rejected.values()] == ["argmax"] and len(asked) == 1, "never measured"


def test_no_candidate_at_all_is_one_line():
    with pytest.raises(
        UserError, match=r"^target 0.03: no network of the proposers shallow, random is within"
    ) as error:
        candidates_of({"shallow": 1, "edited": 0, "random": 1}, target=0.03)
    assert "\n" not in str(error.value)


def proxy_of(winner=None):
    """Made-up proxy training, and a list of what it trained; the network ``winner`` has the lowest loss."""
    trained = []

    def proxy(candidate, share):
        trained.append((candidate.options, share))
        return losses(1.0 if candidate.options == winner else 2 + 0.01 * sum(candidate.options) - share)

    return proxy, trained


@pytest.mark.parametrize("source", ["shallow", "edited", "random"])
def test_the_best_by_proxy_training_is_chosen(source):
    found, _, _ = candidates_of()
    wanted = next(options for options, c in found.candidates.items() if c.source == source)
    proxy, trained = proxy_of(wanted)
    networks = space(0.5, proposers=SOME, rungs=(0.25, 0.5))
    winner, notes = choose(networks, None, proxy)
    assert winner.options == wanted and (notes["chosen_by"], notes["source"]) == ("proxy training", source)
    assert len(notes["candidates"]) == 6 and notes["closed_loop"] == []
    assert [share for _, share in trained] == [0.25] * 6 + [0.5] * 3
    own = next(c for c in notes["candidates"] if c["pattern"] == networks.network(wanted).pattern)
    assert own["source"] == source and own["proxy_share"] == 0.5 and own["proxy_nll"] == pytest.approx(1.0)
    assert own["measured"] is None and own["supernet_nll"] is None and own["estimated"] <= 0.5


def test_ties_go_to_the_network_that_was_measured_faster():
    """All have the same losses; the slowest by the table is the fastest measured one."""
    networks = space(0.5, proposers={"shallow": 3}, rungs=(0.5,), corrections=1)
    full = networks.limits[0]

    def measurement(network):
        options = tuple(networks.specs.index(block) for block in network.blocks)
        return 0.9 - full.of(options) / full.baseline

    winner, notes = choose(networks, measurement, lambda candidate, share: losses(2.0, str(candidate.options), 0.05))
    fastest = min(notes["candidates"], key=lambda c: c["measured"])
    assert networks.network(winner.options).pattern == fastest["pattern"]
    assert fastest["estimated"] == max(c["estimated"] for c in notes["candidates"])


def test_without_a_fast_enough_network_the_fastest_is_used(capsys):
    networks = space(0.5, proposers={"shallow": 2}, corrections=1, rungs=(0.25, 0.5))
    proxy, trained = proxy_of()
    speeds = iter([0.63, 0.58, *[0.7] * 50])
    winner, notes = choose(networks, lambda network: next(speeds), proxy)
    second = notes["closed_loop"][1]
    assert list(winner.options) == second["options"] and second["measured"] == 0.58
    assert trained == [(winner.options, 0.25)], "a single candidate is trained on the first rung only"
    assert notes["chosen_by"] == "shallow" and len(notes["candidates"]) == 1
    assert "no network is fast enough; the fastest is used: 0.580" in capsys.readouterr().out


def test_a_measured_network_within_the_limits_comes_before_an_estimate_beyond_them():
    """The argmax takes 0.544 by the table and is never measured; the cuts are measured with 0.6."""
    alpha = torch.zeros(8, 8)
    alpha[0, 0], alpha[1:, 5] = 3.0, 3.0
    networks = space(0.5, proposers={"shallow": 1, "argmax": 1}, corrections=1, alpha=alpha)
    winner, notes = choose(networks, lambda network: 0.6, proxy_of()[0])
    assert winner.source == "shallow" and networks.allows(winner.options)
    assert notes["candidates"][0]["measured"] == 0.6


def test_the_argmax_alone_is_used_at_any_latency():
    """As in the paper."""
    alpha = torch.zeros(8, 8)
    alpha[:, 7] = 3.0
    networks = space(0.5, proposers={"argmax": 1}, corrections=0, alpha=alpha)
    proxy, trained = proxy_of()
    winner, notes = choose(networks, None, proxy)
    assert named(networks, winner.options) == ["moe_top2"] * 8 and len(trained) == 1
    assert notes["source"] == notes["chosen_by"] == "argmax" and notes["candidates"][0]["estimated"] > 0.5


CONFIG = experiment(candidates={"proposers": {"solver": 0, "argmax": 0}})


def network_of(name: str, config=CONFIG, measurement=None, seed=1, **known):
    """The network of a variant with the toy's latency table, and its notes."""
    variant, table = parse_variant(name), latency_table()
    config = config_of(config, variant)
    networks = space_of(config, variant, VOCAB_SIZE, table, seed, **known)
    network, notes = chosen_network(config, variant, networks, table, measurement, proxy_of()[0])
    return network, notes["selection"]


@pytest.mark.parametrize("name", ["target_0.6", "shallow_0.6", "random_0.6_1", "lts_0.6", "shared_0.6-seed2"])
def test_notes_of_every_method(name):
    network, notes = network_of(name)
    assert notes["variant"] == name and notes["target"] == 0.6 and notes["used"]["target"] <= 0.6
    assert notes["estimated"] == pytest.approx(notes["used"]["target"], abs=1e-9)
    assert notes["estimated_ms"] == latency_table().estimate(network, "cached")
    assert notes["baseline_ms"] == 15.0 and notes["attention"] == "cached"
    assert notes["score_options"] == list(CONFIG.design_space)
    expected = {"shallow": "shallow", "random": "random", "lts": "largest"}.get(name.partition("_")[0])
    assert expected is None or notes["source"] == expected
    assert notes["scored_by"] == ("params" if expected == "largest" else None)


def test_random_controls_differ_by_number_and_repeat():
    patterns = {network_of(f"random_0.6_{number}")[0].pattern for number in range(1, 7)}
    assert len(patterns) > 1
    assert network_of("random_0.6_1") == network_of("random_0.6_1")


def test_random_controls_are_measured_and_corrected():
    """All networks are almost 5 % slower than estimated."""

    def measurement(network):
        return 1.049 * latency_table().estimate(network, "cached") / 15.0

    _, notes = network_of("random_0.7_1", experiment(candidates={"corrections": 3}), measurement)
    assert notes["closed_loop"][0]["measured"] > 0.7 * (1 + TOLERANCE)
    assert notes["closed_loop"][-1]["measured"] <= 0.7 * (1 + TOLERANCE)
    assert notes["candidates"][0]["measured"] == notes["closed_loop"][-1]["measured"]


def test_par_search_has_no_target_and_is_not_measured():
    def measurement(network):
        raise AssertionError("a variant without a target is not measured")

    alpha = torch.zeros(4, 3)
    alpha[:, 2] = 1.0
    network, notes = network_of("par_search", measurement=measurement, alpha=alpha)
    assert network.pattern == "(f)x4" and (notes["target"], notes["source"]) == (None, "argmax")
    assert notes["scored_by"] == "alpha" and list(notes["scores"]) == [f"position_{b}" for b in range(4)]


@pytest.mark.parametrize(("proposer", "scored_by"), [("solver", "replace_one"), ("argmax", "alpha")])
def test_the_argmax_is_not_scored_by_switches(proposer, scored_by):
    none = dict.fromkeys(("shallow", "edited", "solver", "argmax", "random"), 0)
    config = experiment(candidates={"proposers": none | {proposer: 1}})
    known = {"alpha": torch.zeros(4, 6), "supernet_loss": lambda path: 2 + 0.01 * sum(path)}
    _, notes = network_of("target_0.6", config, **known)
    assert (notes["source"], notes["scored_by"]) == (proposer, scored_by)
    assert bool(notes["rounds"]) == (proposer == "solver"), "only switches have rounds"


def test_latencies_are_those_of_the_workloads_attention():
    """Recomputed attention takes twice as long, also in the baseline."""
    _, notes = network_of("shallow_0.6", experiment(workload={"attention": "recompute"}))
    assert notes["baseline_ms"] == 1 + 2 * (8 + 3) and notes["attention"] == "recompute"


def test_a_target_below_embedding_and_head_is_one_line():
    with pytest.raises(UserError, match="target 0.06 cannot be met: reachable range is 0.07 to") as error:
        network_of("shallow_0.06")
    assert "\n" not in str(error.value)


def test_the_chosen_network_keeps_the_limits():
    config = experiment(candidates={"limits": {"params": 0.9}, "proposers": {"solver": 0, "argmax": 0}})
    network, notes = network_of("target_0.9", config)
    baseline = config.model.architecture(VOCAB_SIZE, config.patterns.baseline)
    assert (
        notes["used"]["params"] == pytest.approx(network.params() / baseline.params())
        and notes["used"]["params"] <= 0.9
    )


def test_seeds_of_a_space_differ_by_variant():
    seeds = {
        space_of(config_of(CONFIG, v), v, VOCAB_SIZE, latency_table(), 1).seed
        for v in map(parse_variant, ("random_0.6_1", "random_0.6_2", "target_0.6"))
    }
    assert len(seeds) == 3 and derive_seed(1, "candidates", 0) in seeds
