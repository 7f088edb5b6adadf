"""The report's tables of how networks were chosen: what the solver and the closed loop said, and trials."""

from __future__ import annotations

from collections.abc import Sequence

from planer.evaluation.comparison import pick
from planer.evaluation.page import cell, table


def search_tables(evaluations: Sequence[dict]) -> list[dict]:
    """One table with a row for each network that is no pattern, or none."""
    rows = [_search_row(evaluation) for evaluation in evaluations if evaluation["selection"]]
    columns = ["network", "chosen by", "status", "requested", "estimated", "slack", "measured", "also used"]
    columns += ["supernet nll", "search seconds", "search cost"]
    return [table(columns, rows, text=("network", "chosen by", "status", "measured", "also used"))] if rows else []


def _search_row(evaluation: dict) -> list[str]:
    how, target, cost = (evaluation[name] for name in ("selection", "target", "search"))
    target = target or dict.fromkeys(("requested", "estimated", "slack"), None) | {"rounds": []}
    gap = f", gap {how['gap']:.1g}" if how["gap"] else ""
    return [
        evaluation["variant"],
        " on ".join(filter(None, (how["solver"], how["scored_by"]))),
        (how["status"] or "") + gap,
        cell(target["requested"], "{:.2f}".format),
        cell(target["estimated"], "{:.3f}".format),
        cell(target["slack"], "{:.1%}".format),
        ", then ".join(f"{entry['measured']:.3f}" for entry in target["rounds"]),
        ", ".join(f"{name} {share:.2f}" for name, share in how["used"].items() if name != "target"),
        cell(_chosen(evaluation).get("supernet_nll"), "{:.3f}".format),
        cell(cost and cost["seconds"] + cost["choice_seconds"], "{:.0f}".format),
        cell(pick(cost, "ratio"), "{:.2f}".format),
    ]


def _chosen(evaluation: dict) -> dict:
    """What is known of the network among the candidates that it was chosen from; empty where there were none."""
    pattern = evaluation["architecture"]["pattern"]
    return next((entry for entry in evaluation["selection"]["candidates"] if entry["pattern"] == pattern), {})


def trial_tables(evaluations: Sequence[dict]) -> list[dict]:
    """A table with the candidates of every network that the beginnings of trainings decided about."""
    columns = ["blocks", "found by", "estimated", "supernet nll", "trial run", "nll after it", "measured"]
    tables = []
    for evaluation in evaluations:
        if evaluation["selection"] and "trial_nll" in (chosen := _chosen(evaluation)):
            candidates = evaluation["selection"]["candidates"]
            rows = [
                [
                    entry["pattern"],
                    "lot" if entry["status"] == "random" else evaluation["selection"]["solver"],
                    f"{entry['estimated']:.3f}",
                    cell(entry["supernet_nll"], "{:.3f}".format),
                    f"{entry['trial_part']:.0%}",
                    f"{entry['trial_nll']:.3f}",
                    cell(entry["measured"], "{:.3f}".format),
                ]
                for entry in candidates
            ]
            title = f"{evaluation['variant']}: the beginnings of {len(candidates)} trainings"
            tables.append(
                table(columns, rows, text=("blocks", "found by"), title=title, marks=[s is chosen for s in candidates])
            )
    return tables
