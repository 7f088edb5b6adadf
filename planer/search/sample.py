"""From a variant's name to its architecture: a pattern of the config, or the choice that a search's weights lead to."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from planer.architecture import Architecture
from planer.latency.table import LatencyTable
from planer.search.select import select
from planer.variant import Variant


def sample_architecture(
    config: SimpleNamespace, variant: Variant, vocab_size: int, table: LatencyTable, alpha: torch.Tensor | None
) -> tuple[Architecture, dict]:
    """The variant's architecture and the notes that architecture.yaml keeps beside it.

    alpha [positions, options] comes from the variant's search; patterns need none.  Scores are log softmax(alpha).
    Raises UserError when no architecture of the design space meets the target.
    """
    attention = config.workload.attention
    baseline = config.model.architecture(vocab_size, config.patterns.baseline)
    reference_ms = table.estimate(baseline, attention)
    if variant.pattern is not None:
        blocks = getattr(config.patterns, variant.pattern)
        notes = {"solver": "pattern", "target": None}
    else:
        scores = alpha.double().log_softmax(-1)
        choice = select(
            scores.numpy(),
            list(config.design_space),
            [table.lookup(option, attention) for option in config.design_space],
            budget_ms=variant.target * reference_ms,
            fixed_ms=table.lookup("stem", attention),
            solver=config.sample_architecture.solver,
            baseline_ms=reference_ms,
        )
        blocks = tuple(config.model.option(config.design_space[option]) for option in choice.options)
        notes = {
            "solver": config.sample_architecture.solver,
            "status": choice.status,
            "gap": choice.gap,
            "target": variant.target,
            "score": choice.score,
            "scores": {f"position_{b}": [round(s, 6) for s in row] for b, row in enumerate(scores.tolist())},
            "score_options": list(config.design_space),
        }
    architecture = config.model.architecture(vocab_size, blocks)
    estimated_ms = table.estimate(architecture, attention)
    latency = {
        "attention": attention,
        "estimated_ms": estimated_ms,
        "baseline_ms": reference_ms,
        "estimated": estimated_ms / reference_ms,
    }
    return architecture, {"selection": {"variant": variant.name, **notes, **latency}}
