"""From a variant's name to its architecture: a pattern of the config, or what a search's supernet leads to."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import torch

from planer.architecture import Architecture
from planer.config import SampleConfig
from planer.latency.table import LatencyTable
from planer.search.replace_one import PathLoss, replace_one_scores
from planer.search.select import Limit, Selection, select
from planer.variant import Variant


def sample_architecture(
    config: SimpleNamespace,
    variant: Variant,
    vocab_size: int,
    table: LatencyTable,
    alpha: torch.Tensor | None = None,
    loss: PathLoss | None = None,
) -> tuple[Architecture, dict]:
    """The variant's architecture and the notes that architecture.yaml keeps beside it.

    alpha [positions, options] and the loss of paths come from the variant's supernet; patterns need neither.  Raises
    UserError when no architecture of the design space meets the target.
    """
    attention = config.workload.attention
    baseline = config.model.architecture(vocab_size, config.patterns.baseline)
    reference_ms = table.estimate(baseline, attention)
    if variant.pattern is not None:
        blocks = getattr(config.patterns, variant.pattern)
        notes = {"solver": "pattern", "target": None}
    else:
        how = config.sample_architecture
        costs = [table.lookup(option, attention) for option in config.design_space]
        stem_ms = table.lookup("stem", attention)
        limits = [Limit("target", costs, stem_ms, variant.target * reference_ms, reference_ms)]
        choice, notes = choose(alpha, loss, partial(select, options=config.design_space, limits=limits), how)
        blocks = tuple(config.model.option(config.design_space[option]) for option in choice.options)
        notes = {"solver": how.solver, "target": variant.target, **notes, "score_options": list(config.design_space)}
    architecture = config.model.architecture(vocab_size, blocks)
    estimated_ms = table.estimate(architecture, attention)
    latency = {
        "attention": attention,
        "estimated_ms": estimated_ms,
        "baseline_ms": reference_ms,
        "estimated": estimated_ms / reference_ms,
    }
    return architecture, {"selection": {"variant": variant.name, **notes, **latency}}


def choose(
    alpha: torch.Tensor, loss: PathLoss, solve: Callable[..., Selection], config: SampleConfig
) -> tuple[Selection, dict]:
    """The network that the supernet's scores lead to, and notes on the way there.

    solve is ``select`` for one design space and its limits.  With ``replace_one`` the network of the architecture
    weights is the first incumbent.  Every round scores all single switches of the incumbent.  Their scores add up only
    as long as few positions change (a block that destroys the signal hides all others), so the solver is asked for the
    best networks at up to all, half, a quarter, ... of the positions, and the one with the lowest loss is the next
    incumbent; when none improves on it, the search has ended.
    """
    scores = alpha.double().log_softmax(-1).numpy()
    best = solve(scores, solver=config.solver)
    rounds = []
    if config.scores == "replace_one":
        lowest = loss(best.options)
        rounds.append({"options": best.options, "supernet_nll": lowest})
        for number in range(1, config.rounds + 1):
            incumbent = best.options
            scores = replace_one_scores(loss, incumbent, alpha.shape[1], f"replace-one scores, round {number}")
            for reach in [len(incumbent) >> halvings for halvings in range(len(incumbent).bit_length())]:
                candidate = solve(scores, solver=config.solver, near=(incumbent, reach))
                if candidate.options != incumbent and (nll := loss(candidate.options)) < lowest:
                    best, lowest = candidate, nll
            if best.options == incumbent:
                break
            rounds.append({"options": best.options, "supernet_nll": lowest})
    return best, {
        "scored_by": config.scores,
        "status": best.status,
        "gap": best.gap,
        "score": best.score,
        "rounds": rounds,
        "scores": {f"position_{b}": [round(s, 6) for s in row] for b, row in enumerate(scores.tolist())},
    }
