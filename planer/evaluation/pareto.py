"""One supernet for many latency targets, against a search of its own for each.

The supernet of the mildest target serves all targets: its networks are picked by replace-one scores under each budget,
which costs no training.  For some targets both networks are trained and evaluated by the same road, that from the
shared supernet (``shared_<t>``) and that from a search at the target itself (``target_<t>``).  For the mildest target
they are the same network by construction.
"""

from __future__ import annotations

from collections.abc import Sequence

from planer.config import ParetoConfig
from planer.evaluation.comparison import headline

RULE = (
    "Both networks of a target keep the same latency budget and are retrained alike; the one with the better test "
    "quality wins. A target is charged the seconds of the shared search over the number of targets that it serves, or "
    "all seconds of a search of its own; choosing from a supernet costs both alike and is left out."
)
ROADS = {"shared": "from the shared supernet", "own": "from a search of its own"}


def pareto(config: ParetoConfig, networks: Sequence[dict], evaluations: Sequence[dict]) -> dict:
    """The content of pareto.json; rows go from the tightest target to the mildest.

    networks: contents of architecture.yaml of ``config.shared(target)``, one per target, in the order of the config.
    evaluations: contents of eval.json of both networks of the compared targets, in any order.
    """
    found = {evaluation["variant"]: evaluation for evaluation in evaluations}
    rows = [_choice(config, *pair) for pair in sorted(zip(config.targets, networks, strict=True), key=lambda p: p[0])]
    compared = [_comparison(config, target, found) for target in sorted(config.compared)]
    return {
        "experiment": evaluations[0]["experiment"],
        "supernet": config.supernet,
        "unit": evaluations[0]["quality"]["unit"],
        "rule": RULE,
        "targets": [row | {"on_front": _on_front(row, rows)} for row in rows],
        "compared": compared,
        "totals": _totals(config, compared),
    }


def _choice(config: ParetoConfig, target: float, network: dict) -> dict:
    """What the shared supernet led to for a target."""
    selection = network["selection"]
    return {
        "target": target,
        "variant": config.shared(target),
        "pattern": network["pattern"],
        "estimated": selection["estimated"],
        "slack": 1 - selection["estimated"] / target,
        "supernet_nll": supernet_nll(network),
    }


def supernet_nll(network: dict) -> float | None:
    """The supernet's validation loss on the network of an architecture.yaml, in nats per token.

    None for networks that were chosen by architecture weights, without a look at the loss.
    """
    candidates = network["selection"]["candidates"]
    return next(entry["supernet_nll"] for entry in candidates if entry["pattern"] == network["pattern"])


def _on_front(row: dict, rows: Sequence[dict]) -> bool | None:
    """Whether no other network is at least as good by the supernet's loss and the table, and better by one of them."""
    if row["supernet_nll"] is None:
        return None
    keys = ("estimated", "supernet_nll")
    others = [other for other in rows if other["supernet_nll"] is not None]
    return not any(
        all(other[key] <= row[key] for key in keys) and any(other[key] < row[key] for key in keys) for other in others
    )


def _comparison(config: ParetoConfig, target: float, evaluations: dict[str, dict]) -> dict:
    """Both networks of a target, after retraining; the winner is shared, own, or same when they are one or equal."""
    shared, own = (_trained(evaluations[name]) for name in (config.shared(target), config.own(target)))
    shared["search_seconds"] /= len(config.targets)
    difference = shared["test"] - own["test"]
    winner = "same" if difference == 0 else "shared" if difference < 0 else "own"
    return {"target": target, "shared": shared, "own": own, "winner": winner}


def _trained(evaluation: dict) -> dict:
    """Test quality by the final protocol, latency over the baseline's, and the seconds of the whole search."""
    return {
        "variant": evaluation["variant"],
        "test": evaluation["quality"]["final"]["test"][evaluation["quality"]["unit"]],
        "measured": evaluation["target"]["measured"],
        "latency_ms": headline(evaluation)["median_ms"],
        "search_seconds": evaluation["provenance"]["wall_seconds"]["search"],
    }


def _totals(config: ParetoConfig, compared: Sequence[dict]) -> dict:
    """Seconds of the one search and of the compared targets' own, and of own searches for all targets at their mean."""
    own_seconds = sum(row["own"]["search_seconds"] for row in compared)
    return {
        "targets": len(config.targets),
        "compared": len(compared),
        "shared_search_seconds": compared[0]["shared"]["search_seconds"] * len(config.targets),
        "own_search_seconds": own_seconds,
        "own_search_seconds_all_targets": own_seconds / len(compared) * len(config.targets),
        "mean_test": {road: sum(row[road]["test"] for row in compared) / len(compared) for road in ROADS},
        "wins": {winner: sum(row["winner"] == winner for row in compared) for winner in (*ROADS, "same")},
    }
