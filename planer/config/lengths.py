"""How much text the stages of an experiment need, checked before any of them starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from planer.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import SimpleNamespace

    from planer.config.corpora import Corpus
    from planer.config.experiment import Experiment


TRAININGS = ("search", "retrain", "distill", "projections", "sparsify", "train_routers")
"""Sections whose stages train, on the training text."""


VALID_BATCH = 16
"""Streams of a validation, as in NVIDIA's train.py; the result hardly depends on it."""


def trainings(config: Experiment | SimpleNamespace) -> tuple[str, ...]:
    """Those of TRAININGS that an experiment asks for."""
    return tuple(name for name in TRAININGS if name != "projections" or config.projections.replace)


def training_tokens(batch: int) -> int:
    """Least tokens of a training text: one to predict in every stream."""
    return 2 * batch


def segments_per_epoch(tokens: int, batch: int, tgt_len: int) -> int:
    """Segments of one pass over a training text: every stream predicts all its tokens but the first."""
    return -(-(tokens // batch - 1) // tgt_len)


def evaluation_tokens(batch: int, tgt_len: int, mem_len: int) -> int:
    """Least tokens of a text that is scored in batch streams.

    A stream warms up on the end of the previous stream and must not meet its own tokens there.  A single stream warms
    up on its own end.
    """
    warmup_segments = -(-mem_len // tgt_len)
    return batch * max(2, -(-warmup_segments * tgt_len // max(batch - 1, 1)))


def check_lengths(config: Experiment, corpus: Corpus) -> None:
    """Raise UserError when a split is shorter than a stage needs, or empty, and for a search that cannot run.

    Subwords are counted later, when the text is prepared.  Here every byte counts as one.
    """
    validated = {
        name: evaluation_tokens(VALID_BATCH, stage.tgt_len, stage.mem_len)
        for name in trainings(config)
        for stage in [getattr(config, name)]
        if name != "search" or config.candidates.needs_supernet
    }
    evaluate = config.evaluate
    scored = {
        "evaluate": evaluation_tokens(evaluate.batch, evaluate.tgt_len, evaluate.mem_len),
        "evaluate.batch with the lengths of retrain": evaluation_tokens(
            evaluate.batch, config.retrain.tgt_len, config.retrain.mem_len
        ),
    }
    needs = {
        "train": {name: training_tokens(getattr(config, name).batch) for name in trainings(config)},
        "valid": scored | {f"a validation with the lengths of {name}": needed for name, needed in validated.items()},
        "test": scored | {"workload": max(calls.batch * calls.excerpt for calls in config.workload.measured)},
    }
    for (split, needed), tokens in zip(needs.items(), corpus.most_tokens, strict=True):
        section = max(needed, key=needed.__getitem__)
        if tokens < needed[section]:
            raise UserError(
                f"config: data: the {split} text has at most {tokens:,} tokens, {section} needs {needed[section]:,}; "
                "lower batch, tgt_len or mem_len, or give more text"
            )
    _check_search(config, corpus, validated)


def _check_search(config: Experiment, corpus: Corpus, validated: Mapping[str, int]) -> None:
    """Raise UserError when candidates.tokens is less than a score needs, or the search has no architecture step."""
    candidates = config.candidates
    read = [name for name, reads in (("search", candidates.needs_supernet), ("distill", candidates.cuts)) if reads]
    for name in read:
        if candidates.tokens < validated[name]:
            raise UserError(
                f"config: candidates.tokens: {candidates.tokens:,} is less than the {validated[name]:,} that {name} "
                f"needs; raise it, or lower {name}.mem_len or {name}.tgt_len"
            )
    if candidates.needs_supernet and (config.search.epoch_steps or corpus.tokens):
        stage = config.search
        stage.epochs(segments_per_epoch(corpus.most_tokens[0], stage.batch, stage.tgt_len)).check()
