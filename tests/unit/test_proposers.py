"""Proposers of networks: limits, order and repetition."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from planted import COSTS, EMBEDDING_AND_HEAD_MS, OPTIONS, named, space
from scipy.stats import chisquare

from planer.errors import UserError
from planer.search.constraints import Limit, latency_limit
from planer.search.proposers import PROPOSERS, cuts
from planer.search.proposers.random import WINDOW, random_network
from planer.search.scorers.replace_one import replace_one_scores

SIZES = Limit("params", [0, 1, 2, 4, 8, 8, 64, 64], 0, 150, 64, "parameters")
"""A limit that two mixtures of experts and a few other blocks reach."""
WORTH = np.random.default_rng(0).normal(size=(8, 8))
"""The made-up fall of the loss by every option at every position."""


def made_up_loss(path) -> float:
    return -WORTH[range(8), list(path)].sum()


def proposed(name: str, networks, most: int = 50) -> list[tuple[int, ...]]:
    found = list(itertools.islice(PROPOSERS[name](networks), most))
    assert {candidate.source for candidate in found} <= {name}
    return [candidate.options for candidate in found]


def alpha(seed: int = 0) -> torch.Tensor:
    return torch.randn(8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("target", [0.3, 0.5, 0.95])
@pytest.mark.parametrize("name", sorted({*PROPOSERS} - {"argmax"}))
def test_networks_keep_all_limits_and_do_not_repeat(name, target):
    networks = space(target, alpha=torch.zeros(8, 8), start_loss=made_up_loss, supernet_loss=made_up_loss, more=[SIZES])
    found = proposed(name, networks, 2 if name == "solver" else 6)
    assert found and len(set(found)) == len(found)
    for options in found:
        assert EMBEDDING_AND_HEAD_MS + sum(COSTS[option] for option in named(networks, options)) <= target * 1.0001
        assert SIZES.of(options) <= SIZES.budget


@pytest.mark.parametrize("name", sorted({*PROPOSERS} - {"argmax"}))
def test_nothing_is_proposed_where_no_network_keeps_the_limits(name):
    assert (
        proposed(name, space(0.03, alpha=torch.zeros(8, 8), start_loss=made_up_loss, supernet_loss=made_up_loss)) == []
    )


def test_shallow_networks_keep_whole_pairs_with_the_first_and_the_last():
    networks = space(0.5)
    found = proposed("shallow", networks)
    assert {len(options) for options in found} == {8}
    depths = set()
    for options in found:
        names = named(networks, options)
        kept = [pair for pair in range(4) if names[2 * pair] != "skip"]
        assert all((names[2 * pair + 1] == "feed_forward") == (pair in kept) for pair in range(4))
        assert all(names[2 * pair].startswith("attention") for pair in kept)
        assert kept[0] == 0 and (kept[-1] == 3 or len(kept) == 1)
        depths.add(len(kept))
    assert depths == {1, 2, 3, 4}


@pytest.mark.parametrize("target", [0.4, 0.5, 0.7])
def test_shallow_networks_have_as_many_heads_as_fit(target):
    networks = space(target)
    for options in proposed("shallow", networks):
        names = named(networks, options)
        for position, name in enumerate(names):
            wider = {"attention_1": "attention_2", "attention_2": "attention_4", "attention_4": "attention_8"}
            if name in wider:
                more = [*options[:position], OPTIONS.index(wider[name]), *options[position + 1 :]]
                assert not networks.allows(more), names
    whole = proposed("shallow", space(1.0))[0]
    assert named(networks, whole) == ["attention_8", "feed_forward"] * 4, "the baseline fits a budget of 1"


def test_of_two_distributions_of_heads_the_lower_start_loss_is_first():
    """The loss falls with the heads of the first or of the last attention block."""
    heads = [0, 1, 2, 4, 8, 0, 0, 0]
    for last in (True, False):
        networks = space(0.5, start_loss=lambda path, at=6 if last else 0: -heads[path[at]])
        first = named(networks, proposed("shallow", networks)[0])
        most = [int(name.removeprefix("attention_")) for name in first if name.startswith("attention")]
        assert len(most) == 3 and (most[2] > most[0] if last else most[0] >= most[2]), most


def test_attention_with_few_heads_is_left_out_if_it_is_slower():
    """On a busy machine one head may be measured three times as slow as eight."""
    networks = space(0.6, costs=COSTS | {"attention_1": 0.5})
    found = [named(networks, options) for options in proposed("shallow", networks)]
    assert found and all("attention_1" not in names for names in found)
    assert any("attention_2" in names for names in found)


def test_a_shallow_network_never_has_more_heads_than_the_baseline():
    networks = space(1.0, pattern="s4fs2f")
    assert named(networks, proposed("shallow", networks)[0]) == [
        "attention_4",
        "feed_forward",
        "attention_2",
        "feed_forward",
    ]


def test_depths_alternate_and_each_is_sorted_by_start_loss():
    networks = space(0.5, start_loss=made_up_loss)
    found = proposed("shallow", networks)
    depth = [sum(options[position] != 0 for position in range(8)) // 2 for options in found]
    number = len(set(depth))
    assert depth[:number] == [3, 2, 4, 1], "sorted by distance from 2.5 pairs, the deeper of two first"
    for depth_now in set(depth):
        losses = [made_up_loss(options) for options, own in zip(found, depth, strict=True) if own == depth_now]
        assert losses == sorted(losses)


def test_of_many_pairs_an_even_subset_is_considered():
    networks = space(0.5, pattern="(sf)x16")
    sets = list(cuts.kept_pairs(networks))
    by_count = Counter(len(kept) for kept in sets)
    assert set(by_count) == set(range(1, 17)) and max(by_count.values()) <= cuts.SUBSETS
    assert all(kept[0] == (0, 1) and (len(kept) == 1 or kept[-1] == (30, 31)) for kept in sets)
    middles = Counter(pair for kept in sets if len(kept) == 9 for pair in kept[1:-1])
    assert len(middles) >= 12, "different pairs"


def test_sets_of_pairs_are_those_of_all_combinations():
    """Every set where there are few; of many, the first one behind half a step, then one a step."""
    networks = space(0.5, pattern="(sf)x9")
    sets = [kept[1:-1] for kept in cuts.kept_pairs(networks) if len(kept) == 5]
    combinations = list(map(list, itertools.combinations(cuts.pairs(networks)[1:-1], 3)))
    assert sets == combinations[1::3]
    assert len([kept for kept in cuts.kept_pairs(networks) if len(kept) == 3]) == 7


def test_a_deep_baseline_has_few_sets_of_pairs():
    """Half of 50 pairs can be kept in 10^14 ways."""
    sets = list(cuts.kept_pairs(space(0.5, pattern="(sf)x50")))
    assert max(Counter(map(len, sets)).values()) <= cuts.SUBSETS and len(sets) > 400


def test_pairs_of_a_baseline_that_does_not_alternate():
    assert cuts.pairs(space(pattern="fsfsff")) == [(0, 1, 2), (3, 4, 5)]
    assert cuts.pairs(space(pattern="ff")) == [(0, 1)]


def test_edited_networks_have_mixtures_or_no_late_attention():
    networks = space(0.7)
    kinds = Counter()
    for options in proposed("edited", networks, 200):
        names = named(networks, options)
        assert "moe_top2" not in names
        places = [i for i, name in enumerate(names) if name != "skip"]
        assert all((i % 2 == 0) == names[i].startswith("attention") for i in places)
        mixtures = [i for i in places if names[i] == "moe_top1"]
        dense = [i for i in places if names[i] == "feed_forward"]
        attention = [i for i in places if i % 2 == 0]
        if not mixtures:
            assert len(attention) == (len(dense) + 1) // 2 and max(attention) < max(dense)
            assert attention == [i - 1 for i in dense[: len(attention)]], "the late half of the attention is dropped"
            kinds["early attention"] += 1
        else:
            assert [i - 1 for i in sorted(mixtures + dense)] == attention
            assert not dense or mixtures == [max(places)], "the last feed-forward layer, or all"
            kinds["last" if dense else "all"] += 1
    assert set(kinds) == {"early attention", "last", "all"}


def test_edits_alternate_and_each_starts_with_its_lowest_loss():
    networks = space(0.6, start_loss=made_up_loss)
    found = [named(networks, options) for options in proposed("edited", networks, 200)]

    def kind(names) -> str:
        return "none" if "moe_top1" not in names else "last" if "feed_forward" in names else "all"

    assert {kind(names) for names in found[:3]} == {"none", "last", "all"}

    def depth(names) -> int:
        return sum(name in ("feed_forward", "moe_top1") for name in names)

    options = proposed("edited", networks, 200)
    for number, names in enumerate(found[:3]):
        same = zip(options, found, strict=True)
        alike = [made_up_loss(o) for o, other in same if (kind(other), depth(other)) == (kind(names), depth(names))]
        assert made_up_loss(options[number]) == min(alike)


def test_without_mixtures_edits_only_drop_late_attention():
    networks = space(0.7, options=OPTIONS[:6])
    found = proposed("edited", networks)
    assert found and all("moe" not in name for options in found for name in named(networks, options))


@pytest.mark.parametrize(
    ("option", "dense"), [("sparse_feed_forward_8", "feed_forward"), ("sparse_attention_4", "attention_8")]
)
def test_edited_networks_have_sparse_layers_in_place_of_all_dense_ones(option, dense):
    networks = space(0.6, options=(*OPTIONS, option), costs=COSTS | {option: 0.01})
    names = named(networks, proposed("edited", networks)[0])
    assert option in names and dense not in names
    place = 0 if dense == "attention_8" else 1
    assert set(names[place::2]) <= {option, "skip"}, "only in place of the dense layer"


def test_each_of_two_sparse_attentions_is_proposed_alone():
    """The number in their names is no number of heads: neither stands for the other, nor do they mix."""
    sparse = {"sparse_attention_2": 0.02, "sparse_attention_4": 0.01}
    networks = space(0.6, options=(*OPTIONS, *sparse), costs=COSTS | sparse)
    first, second = (named(networks, options) for options in proposed("edited", networks)[:2])
    assert [set(names) & set(sparse) for names in (first, second)] == [{option} for option in sparse]


def test_a_design_space_without_feed_forward_or_skip():
    without = {name: tuple(option for option in OPTIONS if option != name) for name in ("skip", "feed_forward")}
    assert proposed("shallow", space(0.5, options=without["feed_forward"])) == []
    networks = space(0.5, options=without["skip"])
    whole = proposed("shallow", networks)
    assert len(whole) == 2, "all pairs with fewer heads, distributed in two ways"
    assert all(named(networks, options)[1::2] == ["feed_forward"] * 4 for options in whole)


@pytest.mark.parametrize("target", [0.3, 0.5, 0.75, 0.95])
@pytest.mark.parametrize("seed", range(3))
def test_the_solver_uses_at_least_99_5_percent_of_its_budget(target, seed):
    """Also where the architecture weights prefer fast options."""
    weights = alpha(seed) - 60 * torch.tensor([COSTS[name] for name in OPTIONS])
    networks = space(target, alpha=weights, scores="alpha", slack=0.005)
    best = next(PROPOSERS["solver"](networks))
    assert 0.995 * target - 1e-8 <= networks.limits[0].of(best.options) / networks.limits[0].baseline <= target
    free = next(PROPOSERS["solver"](space(target, alpha=weights, scores="alpha", slack=1.0)))
    assert networks.limits[0].of(free.options) < 0.9 * networks.limits[0].budget and free.score > best.score
    assert best.status == "optimal" and best.gap == 0


def test_the_solver_takes_the_closest_network_if_none_is_that_close():
    """Latencies are 0.04 plus multiples of 0.1, of a baseline of 0.84: 0.44 is the largest within the budget."""
    costs = {"skip": 0.0, "feed_forward": 0.1}
    networks = space(0.55, pattern="f" * 8, options=tuple(costs), costs=costs, alpha=torch.zeros(8, 2), scores="alpha")
    best = next(PROPOSERS["solver"](networks))
    assert sum(best.options) == 4


def test_the_solver_finds_the_network_of_the_lowest_loss():
    """The loss is a sum over positions, so replace-one scores are exact after one round."""
    networks = space(0.5, alpha=torch.zeros(8, 8), supernet_loss=made_up_loss, scores="replace_one", slack=0.005)
    found = proposed("solver", networks, 3)
    limit = networks.limits[0]
    floor = 0.995 * limit.budget
    several = [
        made_up_loss(options)
        for options in np.random.default_rng(2).integers(8, size=(60_000, 8)).tolist()
        if floor <= limit.of(options) <= limit.budget
    ]
    assert len(several) > 50
    assert made_up_loss(found[0]) == min(entry["supernet_nll"] for entry in networks.incumbents) <= min(several)
    for entry in networks.incumbents:
        assert floor - 1 <= limit.of(entry["options"]) <= limit.budget
    assert np.ptp(np.subtract(networks.scores, WORTH), axis=1).max() < 1e-9, "scores are the falls of the loss"
    assert made_up_loss(found[0]) <= made_up_loss(found[1]) <= made_up_loss(found[2])


def test_scores_are_of_the_incumbent_of_the_last_round():
    """The loss of a pair of blocks is no sum, so the scores of two incumbents differ."""

    def loss(path) -> float:
        return made_up_loss(path) + sum(WORTH[path[i], path[i + 1]] for i in range(7))

    networks = space(0.5, alpha=torch.zeros(8, 8), supernet_loss=loss, scores="replace_one", rounds=1)
    next(PROPOSERS["solver"](networks))
    first, last = (entry["options"] for entry in networks.incumbents)
    assert networks.scores == replace_one_scores(loss, first, 8).tolist() != replace_one_scores(loss, last, 8).tolist()


def test_further_networks_of_the_solver_keep_the_distance_and_have_falling_scores():
    networks = space(0.5, alpha=alpha(), scores="alpha", min_distance=3)
    found = list(itertools.islice(PROPOSERS["solver"](networks), 4))
    pairs = itertools.combinations([candidate.options for candidate in found], 2)
    assert min(sum(x != y for x, y in zip(a, b, strict=True)) for a, b in pairs) >= 3
    assert [c.score for c in found] == sorted((c.score for c in found), reverse=True)


def test_the_solver_ends_without_further_networks():
    """Two positions with a block or none: three of the four networks are within the limit."""
    costs = {"skip": 0.0, "feed_forward": 0.1}
    networks = space(
        0.7, pattern="ff", options=tuple(costs), costs=costs, alpha=torch.zeros(2, 2), scores="alpha", min_distance=1
    )
    assert sorted(proposed("solver", networks)) == [(0, 0), (0, 1), (1, 0)]


def test_argmax_takes_the_largest_weights_at_any_latency():
    weights = alpha(1)
    networks = space(0.3, alpha=weights)
    (options,) = proposed("argmax", networks)
    assert list(options) == weights.argmax(-1).tolist() and not networks.allows(options)
    candidate = next(PROPOSERS["argmax"](networks))
    expected = weights.double().log_softmax(-1).max(-1).values.sum().item()
    assert candidate.score == pytest.approx(expected) and (candidate.status, candidate.gap) == (None, None)


def test_equal_weights_go_to_the_cheaper_option_then_to_the_one_named_first():
    weights = torch.zeros(8, 8)
    weights[0, [2, 5, 6]] = 1.0
    costs = COSTS | {"attention_1": 0.0}
    networks = space(0.3, alpha=weights, costs=costs)
    (options,) = proposed("argmax", networks)
    assert options == (2, *[0] * 7)


def test_the_largest_network_has_the_most_parameters_within_the_latency():
    options = ("skip", "attention_2", "feed_forward", "moe_top1")
    networks = space(0.5, pattern="(sf)x2", options=options)
    (chosen,) = proposed("largest", networks)

    def params(path) -> int:
        return sum(networks.specs[option].params(64) for option in path)

    allowed = [path for path in itertools.product(range(4), repeat=4) if networks.allows(path)]
    assert params(chosen) == max(map(params, allowed)) < max(map(params, itertools.product(range(4), repeat=4)))


def limit(costs, budget, fixed=0.5) -> Limit:
    return latency_limit("target", 0.5, costs, fixed, [2 * budget - fixed])


@pytest.mark.parametrize("costs, budget", [([0.0, 1.0, 1.02, 2.5, 0.4], 5.0), ([0.3, 0.31, 0.9, 0.61], 3.0)])
def test_every_network_in_the_window_is_sampled_equally_often(costs, budget):
    wanted = limit(costs, budget)
    window = [
        path
        for path in itertools.product(range(len(costs)), repeat=5)
        if (1 - WINDOW) * wanted.budget <= wanted.of(path) <= wanted.budget
    ]
    assert len(window) > 20
    counts = Counter(tuple(random_network(wanted, 5, seed)) for seed in range(20 * len(window)))
    assert set(counts) <= set(window)
    assert chisquare([counts[path] for path in window]).pvalue > 1e-3


def test_a_rare_latency_in_a_large_space():
    """32 positions; the latency is five standard deviations below the mean."""
    rare = limit([COSTS[name] for name in OPTIONS], 1.2, fixed=0.04)
    first = random_network(rare, 32, 1)
    assert 0.98 * rare.budget <= rare.of(first) <= rare.budget
    assert random_network(rare, 32, 1) == first != random_network(rare, 32, 2)


def test_a_window_without_networks_is_one_line():
    with pytest.raises(UserError, match="target 0.5: found no network of 3 blocks") as error:
        random_network(limit([1.0, 2.0], 4.3), 3, 0)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="cannot be met: reachable range"):
        random_network(limit([1.0, 2.0], 3.0), 3, 0)


def test_random_networks_depend_on_the_seed_and_use_their_budget():
    first, again, other = space(), space(), space()
    other.seed = 8
    found = proposed("random", first, 5)
    assert found == proposed("random", again, 5) != proposed("random", other, 5)
    assert all(0.98 * first.limits[0].budget <= first.limits[0].of(options) for options in found)
