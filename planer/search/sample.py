"""From a variant's name to its architecture: a pattern of the config, or what a search's supernet leads to."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import torch

from planer.architecture import Architecture
from planer.config import SampleConfig
from planer.latency.table import LatencyTable
from planer.search.replace_one import PathLoss, replace_one_scores
from planer.search.select import Selection, select
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

        def solve(scores: np.ndarray) -> Selection:
            return select(
                scores,
                list(config.design_space),
                [table.lookup(option, attention) for option in config.design_space],
                budget_ms=variant.target * reference_ms,
                fixed_ms=table.lookup("stem", attention),
                solver=how.solver,
                baseline_ms=reference_ms,
            )

        choice, notes = choose(alpha, loss, solve, how)
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
    alpha: torch.Tensor, loss: PathLoss, solve: Callable[[np.ndarray], Selection], config: SampleConfig
) -> tuple[Selection, dict]:
    """The network that the supernet's scores lead to, and notes on the way there.

    solve maps scores [positions, options] to the best network within the budget.  With ``replace_one`` the network of
    the architecture weights is the first incumbent; each round scores all single switches of the incumbent, and what
    the solver makes of them is the next.  Scores of single switches add up only roughly, so the incumbent with the
    lowest loss is chosen, whichever round it came from.
    """
    scores = alpha.double().log_softmax(-1).numpy()
    best = solve(scores)
    rounds = []
    if config.scores == "replace_one":
        tried = {tuple(best.options): (loss(best.options), best, scores)}
        incumbent = best
        for number in range(1, config.rounds + 1):
            scores = replace_one_scores(loss, incumbent.options, alpha.shape[1], f"replace-one scores, round {number}")
            incumbent = solve(scores)
            if tuple(incumbent.options) in tried:
                break
            tried[tuple(incumbent.options)] = (loss(incumbent.options), incumbent, scores)
        rounds = [{"options": path, "supernet_nll": nll} for path, (nll, _, _) in tried.items()]
        _, best, scores = min(tried.values(), key=lambda entry: entry[0])
    return best, {
        "scored_by": config.scores,
        "status": best.status,
        "gap": best.gap,
        "score": best.score,
        "rounds": rounds,
        "scores": {f"position_{b}": [round(s, 6) for s in row] for b, row in enumerate(scores.tolist())},
    }
