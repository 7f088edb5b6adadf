"""Made-up evaluations of networks, valid by the schema of eval.json."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from planer.conversion.thresholds import choose_threshold
from planer.evaluation.dynamic_k import compare_threshold
from planer.specs import Architecture, Attention, FeedForward, MoE, Skip, from_notation

SCHEMA = json.loads((Path(__file__).parents[2] / "planer/schemas/eval.schema.json").read_text())
OPTIONS = {
    "i": Skip(),
    "f": FeedForward(512),
    "f8": FeedForward(4096, 8),
    **{f"s{heads}": Attention(heads, 16) for heads in (1, 2, 4, 8)},
    **{f"m{k}": MoE(512, 8, k) for k in (1, 2)},
}
BASELINE_MS = {"cached": 10.0, "recompute": 14.0}


TOLERANCE = 0.01
SELECTION = {
    "chosen_by": "solver",
    "source": "solver",
    "scored_by": "replace_one",
    "status": "optimal",
    "gap": 0.0,
    "used": {"target": 0.5, "params": 1.25},
    "incumbents": [{"blocks": ["skip", "feed_forward"], "supernet_nll": 2.25}],
    "candidates": [],
    "path": [],
}


def score(nll: float) -> dict:
    return {"nll": nll, "bpc": nll / math.log(2), "tokens": 99_984}


def quality(nll: float) -> dict:
    protocol = {"batch": 16, "tgt_len": 256, "mem_len": 128, "clamp_len": 0, "same_length": True}
    final = protocol | {"valid": score(nll - 0.02), "test": score(nll)}
    train = protocol | {"same_length": False, "valid": score(nll), "test": score(nll + 0.02)}
    return {"unit": "bpc", "final": final, "train": train, "segments": segments(nll)}


def segments(nll: float) -> dict:
    """The loss of 64 segments, which differ in difficulty, and their numbers of tokens."""
    parts = 1 + 0.2 * np.sin(np.arange(64))
    return {"nll": [nll * part for part in parts / parts.mean()], "tokens": [1562] * 32 + [1563] * 32}


def spread(ms: float) -> dict:
    return {"median_ms": ms, "p10_ms": 0.96 * ms, "p90_ms": 1.07 * ms, "n": 20}


def chosen(rows: list[dict], dense: dict, tolerance: float) -> dict | None:
    """The comparison of the threshold that the routers stage chooses, from rows of eval.json."""
    scores = [{"tau": row["tau"], "nll": row["valid"]["nll"], "flops": row["converted_flops"]} for row in rows]
    return compare_threshold(rows, choose_threshold(scores, dense["valid"]["nll"], tolerance), dense)


def evaluation(variant: str, pattern: str, nll: float, share: float, target: float | None = None) -> dict:
    """An eval.json of a network whose latency is ``share`` of the baseline's."""
    architecture = Architecture(256, 128, from_notation(pattern, OPTIONS))
    flops, baseline_flops = architecture.flops(16, 64, 64, "cached"), 3.0e6
    converted = [i for i, block in enumerate(architecture.blocks) if isinstance(block, FeedForward)]
    latency = [
        {
            "batch": 16,
            "tgt_len": 64,
            "mem_len": 64,
            "execution": "eager",
            "attention": mode,
            "headline": mode == "cached",
        }
        | spread(share * ms)
        | {
            "table_ms": 0.97 * share * ms,
            "baseline_median_ms": ms,
            "baseline_table_ms": 0.98 * ms,
            "speed_up": 1 / share,
            "tokens_per_second": 1e3 * 16 * 64 / (share * ms),
        }
        for mode, ms in BASELINE_MS.items()
    ]
    dense = len(converted) * 4 * 128 * 512

    def row(tau: float) -> dict:
        experts = 64 * math.exp(-8 * tau)
        ratio = 0.03 + experts / 64
        return {
            "tau": tau,
            "valid": score(nll + tau**2 - 0.01),
            "test": score(nll + tau**2 + 0.01),
            "converted_flops": ratio * dense,
            "converted_flops_ratio": ratio if converted else None,
            "network_flops": flops + (ratio - 1) * dense,
            "experts_per_token": experts if converted else None,
            "experts_per_layer": [experts] * len(converted),
            "latency": spread(share * 10 * (0.6 + 0.5 * ratio)),
        }

    rows = [row(tau) for tau in ([0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5] if converted else [0.0])]
    dense = quality(nll)["final"] | {"latency": spread(share * 10)}
    return {
        "experiment": "demo",
        "variant": variant,
        "tolerance": TOLERANCE,
        "architecture": {
            "pattern": architecture.pattern,
            "params": architecture.params(),
            "active_params": architecture.active_params(),
            "blocks": [{"kind": b.kind, "option": b.name, "symbol": b.symbol} for b in architecture.blocks],
        },
        "quality": quality(nll),
        "latency": latency,
        "target": target
        and {
            "requested": target,
            "estimated": 0.99 * share,
            "measured": share,
            "slack": 1 - 0.99 * share / target,
            "rounds": [{"budget": target, "estimated": 0.99 * share, "measured": 1.01 * share}],
        },
        "selection": target and SELECTION,
        "search": {
            "stages": {"search": 50.0, "choice": 30.0, "teacher": 10.0},
            "seconds": 90.0,
            "baseline_seconds": 60.0,
            "ratio": 1.5,
            "bar": 1.0,
        }
        if variant.startswith("target")
        else None,
        "flops": {
            "attention": "cached",
            "counted": flops,
            "closed_form": flops,
            "baseline": baseline_flops,
            "baseline_ratio": flops / baseline_flops,
        },
        "dynamic_k": rows,
        "conversion": {
            "converted_layers": len(converted),
            "blocks": converted,
            "num_experts": [64] * len(converted),
            "expert_size": [8] * len(converted),
            "reason": None if converted else "the network has no dense feed-forward layer",
            "baseline_latency": spread(10),
            "dense_latency": dense["latency"],
            "sparsified": {"valid": score(nll - 0.01), "test": score(nll + 0.01)},
            "sparsified_latency": spread(share * 10),
            "tau0_difference": 1.2e-8,
            "chosen": chosen(rows, dense, TOLERANCE),
        },
        "summary": {"dense": {"speed_up": 1 / share, "nll_ratio": nll / 1.6}, "converted": None},
        "reference": {"bigram": score(2.4)},
        "baseline": {
            "pattern": "(sf)x4",
            "params": 1_000_000,
            "active_params": 1_000_000,
            "quality": quality(1.6),
            "latency": [
                {"attention": mode, "execution": "eager", "table_ms": 0.98 * ms, **spread(ms)}
                for mode, ms in BASELINE_MS.items()
            ],
        },
        "provenance": {
            "git_commit": "unknown",
            "config_hash": "0123456789abcdef",
            "device": "a CPU",
            "dtype": "float32",
            "versions": {"python": "3.11.9", "torch": "2.13.0"},
            "seed": 1111,
            "wall_seconds": {"search": 61.0, "retrain": 95.5},
        },
    }


VARIANTS = (
    ("baseline", "(s8f)x4", 1.60, 1.0, None),
    ("par", "(s8ff)x2(f)x2", 1.65, 0.72, None),
    ("target_0.5", "s4fim1s2ifi", 1.62, 0.51, 0.5),
    ("target_0.3", "s1iim1iiim2", 1.72, 0.31, 0.3),
)
NINE = (
    ("baseline", "(s8f)x4", 1.60, 1.0, None),
    ("sandwich", "(s8)x2(s8f)x2(f)x2", 1.63, 1.02, None),
    ("par", "(s8ff)x2(f)x2", 1.65, 0.72, None),
    ("target_0.5", "s4fim1s2ifi", 1.62, 0.501, 0.5),
    ("target_0.75", "s4fim1s2ifm2", 1.61, 0.745, 0.75),
    ("random_0.5_1", "s2ffs4ifif", 1.66, 0.495, 0.5),
    ("random_0.5_2", "is2m1fs4iii", 1.70, 0.49, 0.5),
    ("random_0.5_3", "s8iifffii", 1.68, 0.498, 0.5),
    ("isoparam_0.5", "s4fiif8s1ii", 1.64, 0.503, 0.5),
)
"""The networks that the demo compares."""
