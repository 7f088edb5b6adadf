"""How much text the stages of an experiment need, checked before any of them starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from planer.errors import UserError

if TYPE_CHECKING:
    from types import SimpleNamespace

    from planer.config.corpora import Corpus
    from planer.config.experiment import Experiment


TRAININGS = ("search", "retrain", "distill", "projections", "sparsify", "train_routers")
"""Sections whose stages train, on the training text."""


def trainings(config: Experiment | SimpleNamespace) -> tuple[str, ...]:
    """Those of TRAININGS that an experiment asks for."""
    return tuple(name for name in TRAININGS if name != "projections" or config.projections.replace)


def training_tokens(batch: int) -> int:
    """Least tokens of a training text: one to predict in every stream."""
    return 2 * batch


def evaluation_tokens(batch: int, tgt_len: int, mem_len: int) -> int:
    """Least tokens of a text that is scored in batch streams.

    A stream warms up on the end of the previous stream and must not meet its own tokens there.  A single stream warms
    up on its own end.
    """
    warmup_segments = -(-mem_len // tgt_len)
    return batch * max(2, -(-warmup_segments * tgt_len // max(batch - 1, 1)))


def check_lengths(config: Experiment, corpus: Corpus) -> None:
    """Raise UserError when a split is shorter than a stage needs, or empty.

    Subwords are counted later, when the text is prepared.  Here every byte counts as one.
    """
    evaluate = config.evaluate
    scored = {
        "evaluate": evaluation_tokens(evaluate.batch, evaluate.tgt_len, evaluate.mem_len),
        "evaluate.batch with the lengths of retrain": evaluation_tokens(
            evaluate.batch, config.retrain.tgt_len, config.retrain.mem_len
        ),
    }
    needs = {
        "train": {name: training_tokens(getattr(config, name).batch) for name in trainings(config)},
        "valid": scored,
        "test": scored | {"workload": max(calls.batch * calls.excerpt for calls in config.workload.measured)},
    }
    for (split, needed), tokens in zip(needs.items(), corpus.most_tokens, strict=True):
        section = max(needed, key=needed.__getitem__)
        if tokens < needed[section]:
            raise UserError(
                f"config: data: the {split} text has at most {tokens:,} tokens, {section} needs {needed[section]:,}; "
                "lower batch, tgt_len or mem_len, or give more text"
            )
