"""Replace-one scores, on a supernet and on made-up losses."""

from __future__ import annotations

import dataclasses
import itertools
from types import SimpleNamespace

import numpy as np
import planted
import pytest
import torch
from toy import MS, VOCAB_SIZE, experiment, latency_table

from planer.config.lengths import VALID_BATCH
from planer.config.variant import parse_variant
from planer.data.stream import EvalBatches, StreamBatches
from planer.models import LanguageModel, initialise
from planer.runtime import Runtime
from planer.search.network import space_of
from planer.search.proposers import PROPOSERS
from planer.search.scorers.replace_one import SupernetLoss, replace_one_scores
from planer.search.space import Candidate, Space
from planer.search.supernet import Supernet, build_supernet
from planer.tasks.nll import Protocol, mean_nll

pytestmark = pytest.mark.slow
CONFIG = experiment(candidates={"slack": 1.0, "rounds": 3})
OPTIONS = list(CONFIG.design_space)
COSTS = np.array([MS[option] for option in OPTIONS])
BASELINE_MS = 1 + 2 * (4 + 3)
CPU = torch.device("cpu")


def text(length: int = 2000) -> np.ndarray:
    return np.random.default_rng(0).integers(0, VOCAB_SIZE, length).astype(np.uint8)


@pytest.fixture
def supernet() -> Supernet:
    supernet = build_supernet(CONFIG, VOCAB_SIZE)
    initialise(supernet, torch.Generator().manual_seed(0))
    torch.nn.init.normal_(supernet.alpha, generator=torch.Generator().manual_seed(1))
    return supernet


def real_loss(supernet):
    return SupernetLoss(supernet, text(), CONFIG.search, Runtime())


def test_the_loss_of_a_path_equals_that_of_the_network_of_its_blocks(supernet):
    path = [2, 3, 0, 4]
    blocks = [block.options[i] for block, i in zip(supernet.blocks, path, strict=True)]
    network = LanguageModel(supernet.architecture, blocks).eval()
    network.embedding, network.head = supernet.embedding, supernet.head
    total, count, memory = 0.0, 0, None
    batches = EvalBatches(text(), VALID_BATCH, CONFIG.search.tgt_len, CONFIG.search.mem_len)
    with torch.no_grad():
        for inputs, targets, counted in batches:
            output = network(inputs, memory, mem_len=CONFIG.search.mem_len)
            hidden, memory = output.hidden, output.state
            if counted:
                total += network.nll(hidden, targets).double().sum().item()
                count += targets.numel()
    assert real_loss(supernet)(path) == pytest.approx(total / count, rel=1e-6)


def test_scores_are_reductions_of_the_loss(supernet):
    loss, incumbent = real_loss(supernet), [2, 3, 1, 0]
    scores = replace_one_scores(loss, incumbent, len(OPTIONS))
    assert scores.shape == (4, len(OPTIONS))
    assert (scores[range(4), incumbent] == 0).all()
    assert scores[1, 5] == loss(incumbent) - loss([2, 5, 1, 0]) != 0
    assert scores[3, 4] == loss(incumbent) - loss([2, 3, 1, 4]) != 0


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_stored_activations_change_no_loss(norm):
    """The order of the paths uses, extends and drops the stored activations."""
    config = experiment(model={"norm": norm})
    supernet = build_supernet(config, VOCAB_SIZE)
    initialise(supernet, torch.Generator().manual_seed(0))
    protocol = Protocol(VALID_BATCH, config.search.tgt_len, config.search.mem_len)
    loss = real_loss(supernet)
    for path in ("2310", "2510", "2410", "2310", "2340", "2340", "1340", "2315"):
        path = [int(option) for option in path]
        supernet.choose(path)
        expected, _ = mean_nll(supernet, text(), protocol, Runtime(), "recompute")
        assert loss(path) == expected


def test_blocks_before_a_switch_run_once(supernet):
    runs = [0] * 4
    for b, block in enumerate(supernet.blocks):
        block.register_forward_hook(lambda *_, b=b: runs.__setitem__(b, runs[b] + 1))
    loss = real_loss(supernet)
    loss([0, 0, 0, 0])
    once, switches = runs[0], len(OPTIONS) - 1
    replace_one_scores(loss, [0, 0, 0, 0], len(OPTIONS))
    # Runs of a block: those of the incumbent, those of all switches at it and before it, and those that fill the store.
    assert [count / once for count in runs] == [4 + switches, 4 + 2 * switches, 4 + 3 * switches, 2 + 4 * switches]


def solved(target: float, alpha: torch.Tensor, loss=None, **changes) -> tuple[Candidate, Space]:
    """The best network that the solver proposes."""
    config = SimpleNamespace(**vars(CONFIG) | {"candidates": dataclasses.replace(CONFIG.candidates, **changes)})
    variant = parse_variant(f"target_{target}")
    space = space_of(config, variant, VOCAB_SIZE, latency_table(), 0, alpha=alpha, supernet_loss=loss)
    return next(PROPOSERS["solver"](space)), space


def within(target: float) -> list[tuple[int, ...]]:
    paths = itertools.product(range(len(OPTIONS)), repeat=4)
    return [path for path in paths if 1 + COSTS[list(path)].sum() <= target * BASELINE_MS]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("target", [0.3, 0.5, 0.8])
def test_the_lowest_loss_is_found_with_misleading_architecture_weights(seed, target):
    """The loss is a sum over positions; the architecture weights are random."""
    random = np.random.default_rng(seed)
    worth = random.normal(size=(4, len(OPTIONS)))

    def loss(path):
        return 5.0 - worth[range(4), list(path)].sum()

    best = min(within(target), key=loss)
    alpha = torch.from_numpy(random.normal(size=worth.shape))
    choice, space = solved(target, alpha, loss, rounds=1)
    assert choice.options == best
    assert space.incumbents[0]["supernet_nll"] >= space.incumbents[-1]["supernet_nll"] == pytest.approx(loss(best))
    argmax = next(PROPOSERS["argmax"](space)).options
    assert not space.allows(argmax) or loss(argmax) >= loss(best)


@pytest.mark.parametrize("seed", range(20))
def test_the_choice_is_never_worse_than_any_incumbent(seed):
    """Also if the loss is no sum over positions."""
    random = np.random.default_rng(seed)
    worth, pairs = random.normal(size=(4, len(OPTIONS))), 2 * random.normal(size=(len(OPTIONS), len(OPTIONS)))

    def loss(path):
        return -worth[range(4), list(path)].sum() - sum(pairs[a, b] for a, b in itertools.pairwise(path))

    alpha = torch.from_numpy(random.normal(size=worth.shape))
    choice, space = solved(0.5, alpha, loss)
    assert loss(choice.options) == min(entry["supernet_nll"] for entry in space.incumbents)
    assert loss(choice.options) <= loss(solved(0.5, alpha, scores="alpha")[0].options)
    assert space.allows(choice.options)
    assert 1 <= len(space.incumbents) <= 4


@pytest.fixture(scope="module")
def trained() -> tuple[Supernet, np.ndarray]:
    """A supernet trained to count with all options equally often, and its text."""
    counting = np.arange(4000, dtype=np.uint8) % 50
    supernet = build_supernet(CONFIG, VOCAB_SIZE)
    initialise(supernet, torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(supernet.weights(), lr=1e-2)
    batches = StreamBatches(counting, 4, 32)
    for step, path in enumerate(supernet.sample_fair(60, torch.Generator().manual_seed(0)).tolist()):
        supernet.choose(path)
        inputs, targets = batches.batch_at(step)
        loss = supernet.nll(supernet(inputs, None, mem_len=0).hidden, targets).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 1.0
    return supernet, counting


@pytest.mark.parametrize("position", range(4))
@pytest.mark.parametrize("target", [0.4, 0.6, 1])
def test_a_useless_option_is_not_chosen(trained, target, position):
    """Feed-forward layers output noise; the architecture weights prefer one of them."""
    supernet, counting = trained
    useless = OPTIONS.index("feed_forward")
    for block in supernet.blocks:
        torch.nn.init.normal_(block.options[useless].sublayer.w2.weight, std=100.0)
    alpha = torch.zeros(4, len(OPTIONS))
    alpha[position, useless] = 1.0
    loss = SupernetLoss(supernet, counting, CONFIG.search, Runtime())
    choice, space = solved(target, alpha, loss)
    assert space.incumbents[0]["options"].count(useless) == 1
    assert useless not in choice.options


def test_a_useless_option_is_chosen_if_nothing_else_fits():
    """The budget leaves room for one useful option."""
    costs = {"attention_8": 0.5, "feed_forward": 0.1}

    def loss(path):
        return float(sum(path))  # option 1 is worth less everywhere

    known = {"alpha": torch.zeros(4, 2), "supernet_loss": loss, "scores": "replace_one", "slack": 1.0}
    networks = planted.space(0.7, "(sf)x2", tuple(costs), costs, **known)
    assert sorted(next(PROPOSERS["solver"](networks)).options) == [0, 1, 1, 1]
