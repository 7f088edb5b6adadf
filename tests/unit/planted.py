"""Made-up spaces of networks, and made-up losses of networks."""

from __future__ import annotations

import dataclasses
import zlib

import numpy as np
from toy import VOCAB_SIZE, experiment

from planer.search.constraints import latency_limit
from planer.search.halving import Losses
from planer.search.space import Space

MODEL = experiment(model={"d_model": 64, "num_heads": 8}).model
OPTIONS = (
    *("skip", "attention_1", "attention_2", "attention_4", "attention_8"),
    *("feed_forward", "moe_top1", "moe_top2"),
)
COSTS = {
    "skip": 0.0,
    "attention_1": 0.031,
    "attention_2": 0.057,
    "attention_4": 0.089,
    "attention_8": 0.168,
    "feed_forward": 0.072,
    "moe_top1": 0.156,
    "moe_top2": 0.247,
}
"""Shares of the baseline's latency, measured for the demo on one machine."""
EMBEDDING_AND_HEAD_MS = 0.04
KNOWN = ("start_loss", "alpha", "supernet_loss")


def space(target: float = 0.5, pattern: str = "(sf)x4", options=OPTIONS, costs=None, more=(), **known) -> Space:
    """Networks within a target.  known: losses and architecture weights, and keys of the section candidates."""
    costs = COSTS if costs is None else costs
    baseline = MODEL.architecture(VOCAB_SIZE, pattern)
    of_baseline = [costs[block.name] for block in baseline.blocks]
    limit = latency_limit("target", target, [costs[name] for name in options], EMBEDDING_AND_HEAD_MS, of_baseline)
    settings = {key: known.pop(key) for key in list(known) if key not in KNOWN}
    config = dataclasses.replace(experiment().candidates, **{"min_distance": 2, "rounds": 3} | settings)
    specs = tuple(MODEL.option(name) for name in options)
    return Space(config, tuple(options), specs, baseline, [limit, *more], seed=7, **known)


def named(networks: Space, options) -> list[str]:
    """Names of the options of a network."""
    return [networks.names[option] for option in options]


def losses(mean: float, own: str = "", noise: float = 0.0) -> Losses:
    """Losses on 16 segments, which differ more than networks do.  noise: of each segment, seeded by ``own``."""
    segments = 0.3 * np.sin(np.arange(16))
    added = np.random.default_rng(zlib.crc32(own.encode())).normal(0, noise, 16)
    return Losses((mean + segments - segments.mean() + added - added.mean()).tolist(), [100] * 16)
