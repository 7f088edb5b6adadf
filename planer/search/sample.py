"""From a variant's name to its architecture: a pattern, a control, or what a search's supernet leads to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch

from planer.architecture import Architecture, load_selection
from planer.config import derive_seed
from planer.latency.table import LatencyTable
from planer.search.arms import config_of
from planer.search.choose import Chooser
from planer.search.closed_loop import Measurement, centred, correct, round_of, worth_a_trial
from planer.search.constraints import Limit, limits_of, used
from planer.search.controls import random_network, size_scores
from planer.search.replace_one import PathLoss
from planer.search.solve import Selection
from planer.search.trials import Trial, best_by_trial
from planer.variant import Variant


def sample_architecture(
    config: SimpleNamespace,
    variant: Variant,
    vocab_size: int,
    table: LatencyTable,
    *,
    seed: int = 0,
    alpha: torch.Tensor | None = None,
    loss: PathLoss | None = None,
    measured: Measurement | None = None,
    trial: Trial | None = None,
) -> tuple[Architecture, dict]:
    """The variant's architecture and the notes that architecture.yaml keeps beside it.

    seed is for random controls.  alpha [positions, options] and the loss of paths come from the supernet of a searched
    variant.  With ``measured``, a network that was chosen for a latency target passes the closed loop; with ``trial``,
    the best of several candidates is found by training them for a while.  Raises UserError when no architecture of the
    design space meets the target and the limits.
    """
    attention = config.workload.attention
    baseline = config.model.architecture(vocab_size, config.patterns.baseline)
    if variant.pattern is not None:
        blocks = config.model.architecture(vocab_size, getattr(config.patterns, variant.pattern)).blocks
        notes = {"chosen_by": "pattern", "target": None}
    else:
        supernet = (alpha, loss)
        blocks, notes = _choice(config_of(config, variant), variant, baseline, table, seed, *supernet, measured, trial)
    architecture = config.model.architecture(vocab_size, blocks)
    estimated_ms, reference_ms = (table.estimate(network, attention) for network in (architecture, baseline))
    latency = {
        "attention": attention,
        "estimated_ms": estimated_ms,
        "baseline_ms": reference_ms,
        "estimated": estimated_ms / reference_ms,
    }
    return architecture, {"selection": {"variant": variant.name, **notes, **latency}}


def same_architecture(path: str | Path, variant: Variant) -> tuple[Architecture, dict]:
    """The architecture.yaml of another variant and its notes, for one that differs in its training alone."""
    return Architecture.load(path), {"selection": load_selection(path) | {"variant": variant.name}}


def _choice(
    config: SimpleNamespace,
    variant: Variant,
    baseline: Architecture,
    table: LatencyTable,
    seed: int,
    alpha: torch.Tensor | None,
    loss: PathLoss | None,
    measured: Measurement | None,
    trial: Trial | None,
) -> tuple[tuple, dict]:
    """Blocks and notes of a variant that is no pattern."""
    how, positions = config.sample_architecture, len(baseline.blocks)
    options = [config.model.option(name) for name in config.design_space]
    limits = limits_of(config, baseline, table, variant.target or 1.0, **how.limits)

    def network(choice: Selection) -> Architecture:
        return config.model.architecture(baseline.vocab_size, tuple(options[option] for option in choice.options))

    if variant.arm == "random":
        path = random_network(limits[0], positions, derive_seed(seed, "random", variant.number))
        notes = {"chosen_by": "random", "source": "random", "target": variant.target, "used": used(limits, path)}
        return tuple(options[option] for option in path), notes

    chooser = Chooser(how, config.design_space, limits)
    if variant.arm == "lts":
        choice = chooser.by_scores(size_scores([block.params(baseline.d_model) for block in options], positions))
    else:
        choice = chooser.by_supernet(alpha, loss)
    measured = measured if variant.target is not None else None
    choice, chosen_by, notes = _decided(chooser, choice, limits[0], network, seed, measured, trial)
    source = _source(choice)
    return network(choice).blocks, {
        "chosen_by": chosen_by,
        "source": source,
        "solver": how.solver if source == "solver" else None,
        "scored_by": "params" if variant.arm == "lts" else how.scores,
        "status": choice.status if source == "solver" else None,
        "gap": choice.gap,
        "target": variant.target,
        "score": choice.score,
        "used": used(limits, choice.options),
        "rounds": chooser.rounds,
        **notes,
        "scores": {f"position_{b}": [round(s, 6) for s in row] for b, row in enumerate(chooser.scores.tolist())},
        "score_options": list(config.design_space),
    }


def _decided(
    chooser: Chooser,
    choice: Selection,
    limit: Limit,
    network: Callable[[Selection], Architecture],
    seed: int,
    measured: Measurement | None,
    trial: Trial | None,
) -> tuple[Selection, str, dict]:
    """From the solver's choice to the final one, by measurements and trials; what decided; and the notes on both.

    No candidate is tried that was measured off its target; where none is left, the closed loop's choice stays.
    What decided is ``proxy training`` where candidates competed, ``measured latency`` where another network than the
    solver's choice is the only one on target, and ``solver`` otherwise.
    """
    rounds: list[dict] = []
    known: dict[tuple[int, ...], tuple[float, float]] = {}  # by the table and measured, over the baseline's

    def ratio(selection: Selection) -> float:
        key = tuple(selection.options)
        if key not in known:
            known[key] = selection.cost / limit.baseline, measured(network(selection))
        return known[key][1]

    def fits(selection: Selection) -> bool:
        return trial is None or measured is None or worth_a_trial(ratio(selection), limit.share)

    def aim() -> Limit:
        """Where the table says what the target is when measured, as far as is known."""
        return centred(limit, known.values()) if known else limit

    if measured is not None:
        choice, rounds = correct(choice, chooser.again, limit, ratio, chooser.config.corrections)
    within = aim()
    candidates = [(found, within) for found in chooser.solutions(choice, within, fits)]
    if trial is not None:
        within, others = aim(), [found.options for found, _ in candidates]
        drawn = chooser.drawn(within, chooser.config.num_random, seed, lambda s: s.options not in others and fits(s))
        candidates = [*candidates, *((found, within) for found in drawn)]
    candidates = candidates or [(choice, within)]
    notes = [
        {"pattern": network(candidate).pattern}
        | _described(candidate, limit, known.get(tuple(candidate.options), (None, None))[1])
        | {"supernet_nll": chooser.supernet_nll(candidate)}
        for candidate, _ in candidates
    ]
    chosen_by = "solver"
    if trial is not None:
        solved = choice
        number, trials = best_by_trial([found for found, _ in candidates], lambda c, part: trial(network(c), part))
        notes = [entry | tried for entry, tried in zip(notes, trials, strict=True)]
        choice, within = candidates[number]
        chosen_by = "proxy training" if len(candidates) > 1 else "solver" if choice is solved else "measured latency"
    if measured is not None and all(entry["options"] != choice.options for entry in rounds):
        rounds = [*rounds, round_of(choice, within, ratio(choice))]
    return choice, chosen_by, {"closed_loop": rounds, "candidates": notes}


def _described(candidate: Selection, limit: Limit, measured: float | None) -> dict:
    """Where a candidate comes from, its score, and its latencies over the baseline's."""
    source = _source(candidate)
    return {
        "source": source,
        "status": candidate.status if source == "solver" else None,
        "score": candidate.score,
        "estimated": candidate.cost / limit.baseline,
        "measured": measured,
    }


def _source(choice: Selection) -> str:
    """Where a network comes from: ``solver``, or ``random`` for one that was drawn as the controls are."""
    return "random" if choice.status == "random" else "solver"
