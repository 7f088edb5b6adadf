"""Made-up evaluations of arms, valid by arm.schema.json."""

from __future__ import annotations

DENSE_VALUE = {"accuracy": 0.92, "nll": 2.5}
RATIOS = (1.03, 0.8, 0.6, 0.45, 0.35)
"""FLOPs of the feed-forward layers relative to the dense ones, by row."""


def metrics(metric: str, value: float) -> dict:
    return {metric: value, "macro_f1": value - 0.01} if metric == "accuracy" else {metric: value}


def row(metric: str, selector: str, value: float, ratio: float, loss: float, bound: str | None = None) -> dict:
    """loss: how much worse the quality is than the dense arm's."""
    measured = DENSE_VALUE[metric] + (loss if metric == "nll" else -loss)
    found = metrics(metric, measured)
    return {
        "selector": selector,
        "value": value,
        "bound": bound,
        "valid": None if bound else found,
        "test": found,
        "difference": {"value": measured - DENSE_VALUE[metric], "low": -loss - 0.004, "high": loss + 0.004},
        "executed_share": min(1.0, ratio),
        "feed_forward_flops": 6e6 * ratio,
        "feed_forward_ratio": ratio,
        "network_flops": 4e6 + 6e6 * ratio,
        "network_ratio": 0.4 + 0.6 * ratio,
        "layers": [
            {"layer": f"layers.{i}", "mean": 32 * ratio, "histogram": [0.0] * 6 + [0.25] * 4 + [0.0] * 10}
            for i in range(3)
        ],
    }


def latency(rows: list[dict], speed: float) -> list[dict]:
    """speed: the speed-up of a row is this over its ratio of network FLOPs."""
    found = []
    for batch, phase in ((1, "forward"), (32, "forward")):
        shape = {"batch": batch, "phase": phase, "tokens": 48}
        ms = 2.0 * batch
        spread = {"median_ms": ms, "p10_ms": 0.97 * ms, "p90_ms": 1.1 * ms, "n": 20}
        found.append(
            shape
            | {
                "selector": "dense",
                "value": None,
                "dense_layers": None,
                **spread,
                "speed_up": 1.0,
                "low": 1.0,
                "high": 1.0,
            }
        )
        for entry in rows:
            gain = speed / entry["network_ratio"]
            spread = {"median_ms": ms / gain, "p10_ms": 0.97 * ms / gain, "p90_ms": 1.1 * ms / gain, "n": 20}
            low = {"speed_up": gain, "low": 0.98 * gain, "high": 1.02 * gain}
            named = {"selector": entry["selector"], "value": entry["value"], "dense_layers": 0}
            found.append(shape | named | spread | low)
    return found


def arm(variant: str, method: str, selector: str = "", slope: float = 0.0, metric: str = "accuracy", speed=1.0) -> dict:
    """An eval.json.  slope: quality lost per share of feed-forward FLOPs saved."""
    rows, chosen = [], None
    if method != "dense":
        rows = [row(metric, "all", 0, 1.0, 0.002)]
        rows += [row(metric, selector, i / 10, r, 0.002 + slope * (1.05 - r)) for i, r in enumerate(RATIOS)]
        kept = [r for r in rows if abs(r["test"][metric] / DENSE_VALUE[metric] - 1) <= 0.01]
        best = min(kept, key=lambda r: r["network_flops"], default=None)
        chosen = best and {key: best[key] for key in ("selector", "value")}
    timed = list(rows)
    if method == "experts":
        rows += [row(metric, "absolute", r, r, 0.2 * (1 - r), "random") for r in (0.4, 0.8)]
        rows += [row(metric, selector, 0.1, r, 0.001, "oracle") for r in (0.4, 0.8)]
    dense = metrics(metric, DENSE_VALUE[metric])
    own = rows[0]["test"] if rows else dense
    reference = "dense_continued" if method == "experts" else "dense"
    return {
        "experiment": "toy",
        "variant": variant,
        "method": method,
        "task": {
            "kind": "labelled_text" if metric == "accuracy" else "text",
            "metric": metric,
            "title": "accuracy" if metric == "accuracy" else "negative log-likelihood",
            "unit": "" if metric == "accuracy" else "nats",
            "better": "higher" if metric == "accuracy" else "lower",
            "samples": 2189,
            "tokens": 105_072,
        },
        "tolerance": 0.01,
        "network": {
            "model_type": "bert",
            "activation": "gelu",
            "params": 22_713_216,
            "layers": 3,
            "d_model": 384,
            "d_inner": 1536,
            "gated": False,
            "units": None if method == "dense" else 64,
        },
        "flops": {"projections": 3e6, "attention": 0.5e6, "feed_forward": 6e6, "head": 0.5e6, "total": 1e7},
        "reference": {"variant": reference, "valid": dense, "test": dense},
        "quality": {"valid": own, "test": own},
        "difference": {"value": own[metric] - dense[metric], "low": -0.01, "high": 0.01},
        "rows": rows,
        "chosen": chosen,
        "break_even": 0.5 if method == "experts" else None,
        "latency": latency(timed, speed),
        "provenance": {
            "git_commit": "unknown",
            "device": "a CPU",
            "dtype": "float32",
            "threads": 2,
            "seed": 1,
            "versions": {"python": "3.11.9", "torch": "2.13.0"},
            "seconds": 12.5,
        },
    }


def arms(metric: str = "accuracy") -> list[dict]:
    return [
        arm("dense_continued", "dense", metric=metric),
        arm("dense", "dense", metric=metric),
        arm("moefication", "experts", "top_k", 0.025, metric, speed=0.6),
        arm("d2dmoe", "experts", "dynamic_k", 0.015, metric),
        arm("threshold", "threshold", "product", 0.3, metric, speed=0.8),
    ]
