"""One supernet for many latency targets, against a separate search for each.

The supernet of the loosest target serves all targets.  Under each budget a network is chosen with it: the supernet
scores for some of the proposers (``candidates.proposers``), and proxy training decides between the candidates of all of
them.  So the chosen network may be one that the supernet did not propose.  For some targets two networks are trained
and evaluated in the same way: that chosen with the shared supernet (``shared_<t>``) and that of a search at the target
itself (``target_<t>``), which has the same other proposers.  For the loosest target they are the same network.
"""

from __future__ import annotations

from collections.abc import Sequence

from planer.config import ParetoConfig
from planer.evaluation.comparison import headline

RULE = (
    "Both networks of a target have the same latency budget, the same proposers beside the supernet and the same "
    "training; the one with the better test quality wins. Either may come from a proposer that does not ask the "
    "supernet. A target costs the seconds of the shared search over the number of its targets, or all seconds of a "
    "separate search; choosing with a supernet costs the same for both and is left out."
)
SEARCHES = {"shared": "with the shared supernet", "separate": "with a separate search"}


def pareto(config: ParetoConfig, networks: Sequence[dict], evaluations: Sequence[dict]) -> dict:
    """The content of pareto.json; rows go from the strictest target to the loosest.

    networks: contents of architecture.yaml of ``config.shared(target)``, one per target, in the configured order.
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
    """The network for a target that was chosen with the shared supernet."""
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

    None for networks that were chosen by architecture weights, without this loss.
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
    """Both networks of a target, after training; the winner is shared, separate, or same when they are equal."""
    shared, separate = (_trained(evaluations[name]) for name in (config.shared(target), config.separate(target)))
    shared["search_seconds"] /= len(config.targets)
    difference = shared["test"] - separate["test"]
    winner = "same" if difference == 0 else "shared" if difference < 0 else "separate"
    return {"target": target, "shared": shared, "separate": separate, "winner": winner}


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
    """Seconds of the shared and of the separate searches, and of separate ones for all targets at their mean."""
    separate_seconds = sum(row["separate"]["search_seconds"] for row in compared)
    return {
        "targets": len(config.targets),
        "compared": len(compared),
        "shared_search_seconds": compared[0]["shared"]["search_seconds"] * len(config.targets),
        "separate_search_seconds": separate_seconds,
        "separate_search_seconds_all_targets": separate_seconds / len(compared) * len(config.targets),
        "mean_test": {search: sum(row[search]["test"] for row in compared) / len(compared) for search in SEARCHES},
        "wins": {winner: sum(row["winner"] == winner for row in compared) for winner in (*SEARCHES, "same")},
    }
