"""How long an experiment will train on the device at hand, estimated from its latency table.

A training step costs about three forward passes.  The table has the forward pass of every block for the workload's
shape.  Its time is scaled to the training shape by tokens and by FLOPs per token.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

from planer.config import TrainingConfig
from planer.config.lengths import trainings
from planer.errors import Damaged, UserError
from planer.files import read_json
from planer.specs import EMBEDDING_AND_HEAD, BlockSpec

if TYPE_CHECKING:  # every parse of the Snakefile imports this module, and the table imports PyTorch
    from planer.latency.table import LatencyTable

FORWARDS_PER_STEP = 3
"""A backward pass costs about two forward passes: gradients of the inputs, gradients of the weights."""
FORWARDS_PER_ALPHA_STEP = 2
"""The architecture steps of a search need no gradients of the weights."""


def training_hours(config: SimpleNamespace, vocab_size: int, table: LatencyTable) -> dict[str, float]:
    """Hours of every training stage for one target and its baseline, and their sum.

    The target's network counts like the baseline, which it must not exceed.  Its search includes proxy training.  That
    of keep_<q> is not counted.
    """
    baseline = config.model.architecture(vocab_size, config.patterns.baseline).blocks
    options = [config.model.option(name) for name in config.design_space]
    work = config.workload.of("segment")

    def ms(name: str) -> float:
        return table.lookup(name, "recompute", work.batch, work.execution)

    def scale(training: TrainingConfig) -> float:
        return training.batch * training.tgt_len / (work.batch * work.tgt_len)

    def fixed_ms(training: TrainingConfig) -> float:
        return ms(EMBEDDING_AND_HEAD) * scale(training)

    def blocks_ms(blocks: Iterable[BlockSpec], training: TrainingConfig) -> float:
        total = 0.0
        for block in blocks:
            at_work, in_training = (
                block.flops(config.model.d_model, shape.batch, shape.tgt_len, shape.mem_len, "recompute")
                for shape in (work, training)
            )
            if at_work:  # skip costs nothing
                total += ms(block.name) * scale(training) * in_training / at_work
        return total

    def hours(training: TrainingConfig, forwards: float) -> float:
        """Of the baseline."""
        return (fixed_ms(training) + blocks_ms(baseline, training)) * training.steps * forwards / 3.6e6

    def supernet_hours() -> float:
        search = config.search
        fixed, all_options = fixed_ms(search), len(baseline) * blocks_ms(options, search)
        weight_step = FORWARDS_PER_STEP * (fixed + all_options / len(options))
        alpha_step = FORWARDS_PER_ALPHA_STEP * (fixed + all_options)
        alpha_steps = search.alpha_share * (1 - search.frozen_share)
        teacher = (1 + alpha_steps) * hours(search, 1) if search.distill else 0.0
        return (weight_step + alpha_step * alpha_steps) * search.steps / 3.6e6 + teacher

    supernet = supernet_hours() if config.candidates.needs_supernet else 0.0
    student = hours(config.distill, FORWARDS_PER_STEP + 1)  # the teacher runs in every step
    result = {
        "search": supernet + config.candidates.proxy_trainings * student,
        "retrain": hours(config.retrain, FORWARDS_PER_STEP),
        "distill": student,
        **({"projections": 2 * hours(config.projections, FORWARDS_PER_STEP)} if config.projections.replace else {}),
        "sparsify": 2 * hours(config.sparsify, FORWARDS_PER_STEP + 1),
        "train_routers": 2 * hours(config.train_routers, 1),
    }
    return result | {"total": sum(result.values())}


def training_tokens(config: SimpleNamespace) -> dict[str, int]:
    """Tokens that every training stage reads, for one network; its search includes proxy training."""
    stages = {name: getattr(config, name) for name in trainings(config)}
    tokens = {name: stage.steps * stage.batch * stage.tgt_len for name, stage in stages.items()}
    supernet = tokens["search"] if config.candidates.needs_supernet else 0
    return tokens | {"search": max(1, supernet + round(config.candidates.proxy_trainings * tokens["distill"]))}


def load_cost(path: str | Path) -> dict:
    """The content of an earlier cost.json.

    Raises UserError when it is damaged.  It is read before Snakemake knows its rules, so the advice is to delete it.
    """
    try:
        return read_json(path, "cost")
    except Damaged as error:
        raise Damaged(path, error.problem, "delete it: the next run makes it anew") from error


def rescaled(report: dict, config: SimpleNamespace) -> dict[str, float]:
    """The hours of an earlier estimate, scaled to the tokens that the stages read now.

    report: ``hours`` and ``tokens`` by stage, the content of cost.json.
    """
    tokens, known = training_tokens(config), report["tokens"]
    # Projections that the estimate did not replace: a token costs about as much as in retrain.
    likes = {name: name if name in known else "retrain" for name in tokens}
    hours = {name: report["hours"][like] * tokens[name] / known[like] for name, like in likes.items()}
    return hours | {"total": sum(hours.values())}


def check_hours(hours: dict[str, float], device: str, config: SimpleNamespace) -> None:
    """Refuse an experiment whose training would take longer than config.max_hours.

    Raises UserError with the estimate, a smaller experiment, and the max_hours that would allow this one.
    """
    if hours["total"] > config.max_hours:
        parts = ", ".join(f"{name} {value:,.1f} h" for name, value in hours.items() if name != "total")
        small = "enwik8-mini" if config.data.dataset != "enwik8-mini" else "demo"
        raise UserError(
            f"would train for about {hours['total']:,.1f} h on {device} ({parts}), more than "
            f"max_hours = {config.max_hours:g}; run the small one: snakemake --cores 2 "
            f"results/{small}/target_0.5/eval.json; or go on with --config max_hours={math.ceil(1.5 * hours['total'])}"
        )
