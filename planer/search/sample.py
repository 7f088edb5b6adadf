"""From a variant's name to its architecture: a pattern, a control, or what a search's supernet leads to."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch
import yaml

from planer.architecture import Architecture
from planer.config import derive_seed
from planer.latency.table import LatencyTable
from planer.search.arms import config_of
from planer.search.choose import Chooser
from planer.search.closed_loop import Measurement, correct
from planer.search.controls import random_network, size_scores
from planer.search.limits import limits_of, used
from planer.search.replace_one import PathLoss
from planer.search.select import Selection
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
) -> tuple[Architecture, dict]:
    """The variant's architecture and the notes that architecture.yaml keeps beside it.

    seed is for random controls.  alpha [positions, options] and the loss of paths come from the supernet of a searched
    variant.  With ``measured``, a network that was chosen for a latency target passes the closed loop.  Raises
    UserError when no architecture of the design space meets the target and the limits.
    """
    attention = config.workload.attention
    baseline = config.model.architecture(vocab_size, config.patterns.baseline)
    if variant.pattern is not None:
        blocks = config.model.architecture(vocab_size, getattr(config.patterns, variant.pattern)).blocks
        notes = {"solver": "pattern", "target": None}
    else:
        blocks, notes = _choice(config_of(config, variant), variant, baseline, table, seed, alpha, loss, measured)
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
    notes = yaml.safe_load(Path(path).read_text())["selection"]
    return Architecture.load(path), {"selection": notes | {"variant": variant.name}}


def _choice(
    config: SimpleNamespace,
    variant: Variant,
    baseline: Architecture,
    table: LatencyTable,
    seed: int,
    alpha: torch.Tensor | None,
    loss: PathLoss | None,
    measured: Measurement | None,
) -> tuple[tuple, dict]:
    """Blocks and notes of a variant that is no pattern."""
    how, positions = config.sample_architecture, len(baseline.blocks)
    options = [config.model.option(name) for name in config.design_space]
    limits = limits_of(config, baseline, table, variant.target or 1.0, **how.limits)

    def network(choice: Selection) -> Architecture:
        return config.model.architecture(baseline.vocab_size, tuple(options[option] for option in choice.options))

    if variant.arm == "random":
        path = random_network(limits[0], positions, derive_seed(seed, "random", variant.number))
        notes = {"solver": "random", "target": variant.target, "used": used(limits, path)}
        return tuple(options[option] for option in path), notes

    chooser = Chooser(how, config.design_space, limits)
    if variant.arm == "lts":
        choice = chooser.by_scores(size_scores([block.params(baseline.d_model) for block in options], positions))
    else:
        choice = chooser.by_supernet(alpha, loss)
    rounds: list[dict] = []
    if measured is not None and variant.target is not None:
        choice, rounds = correct(choice, chooser.again, limits[0], lambda c: measured(network(c)), how.corrections)
    others = [
        {"pattern": network(other).pattern, "score": other.score, "estimated": other.cost / limits[0].baseline}
        for other in chooser.alternatives(choice)[1:]
    ]
    return network(choice).blocks, {
        "solver": how.solver,
        "scored_by": "params" if variant.arm == "lts" else how.scores,
        "status": choice.status,
        "gap": choice.gap,
        "target": variant.target,
        "score": choice.score,
        "used": used(limits, choice.options),
        "rounds": chooser.rounds,
        "closed_loop": rounds,
        "alternatives": others,
        "scores": {f"position_{b}": [round(s, 6) for s in row] for b, row in enumerate(chooser.scores.tolist())},
        "score_options": list(config.design_space),
    }
