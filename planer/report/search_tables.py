"""The report's tables of how networks were chosen: solver, closed loop and proxy training."""

from __future__ import annotations

from collections.abc import Sequence

from planer.evaluation.comparison import pick
from planer.report.page import cell, table


def search_tables(evaluations: Sequence[dict]) -> list[dict]:
    """One table with a row for each network that is no pattern, or none."""
    rows = [_search_row(evaluation) for evaluation in evaluations if evaluation["selection"]]
    columns = ["network", "chosen by", "status", "requested", "estimated", "slack", "measured", "also used"]
    bars = {evaluation["search"]["bar"] for evaluation in evaluations if evaluation["search"]}
    columns += [
        "supernet nll",
        "search seconds",
        ", ".join(["search cost", *(f"wanted at most {bar:g}" for bar in bars)]),
    ]
    return [table(columns, rows, text=("network", "chosen by", "status", "also used"))] if rows else []


def _search_row(evaluation: dict) -> list[str]:
    how, target, cost = (evaluation[name] for name in ("selection", "target", "search"))
    target, chosen = target or dict.fromkeys(("requested", "estimated", "slack"), None), _chosen(evaluation)
    gap = f", gap {how['gap']:.1g}" if how["gap"] else ""
    return [
        evaluation["variant"],
        chosen_by(evaluation),
        (how["status"] or "") + gap,
        cell(target["requested"], "{:g}".format),
        cell(target["estimated"], "{:.3f}".format),
        cell(target["slack"], "{:.1%}".format),
        cell(chosen.get("measured"), "{:.3f}".format),
        ", ".join(f"{name} {share:.2f}" for name, share in how["used"].items() if name != "target"),
        cell(chosen.get("supernet_nll"), "{:.3f}".format),
        cell(pick(cost, "seconds"), "{:.0f}".format),
        cell(pick(cost, "ratio"), "{:.2f}".format),
    ]


SOURCES = {
    "shallow": "shallow cut of the baseline",
    "edited": "edited cut of the baseline",
    "solver": "solver",
    "argmax": "argmax of the architecture weights",
    "random": "random network",
    "largest": "most parameters",
}
"""Proposers in words."""


def chosen_by(evaluation: dict) -> str:
    """How a network that is no pattern was chosen, in words."""
    how = evaluation["selection"]
    source = SOURCES[how["source"]] + (f" on {how['scored_by']}" if how["source"] == "solver" else "")
    if how["chosen_by"] == "proxy training":
        return f"{source}, by proxy training of {len(how['candidates'])} candidates"
    return f"{source}, by the quality that it keeps" if how["chosen_by"] == "quality kept" else source


def _chosen(evaluation: dict) -> dict:
    """The network's entry among the candidates that it was chosen from; empty where there were none."""
    pattern = evaluation["architecture"]["pattern"]
    return next((entry for entry in evaluation["selection"]["candidates"] if entry["pattern"] == pattern), {})


def proxy_training_tables(evaluations: Sequence[dict]) -> list[dict]:
    """A table with the candidates of every network that proxy training decided about."""
    columns = ["blocks", "source", "estimated", "supernet nll", "proxy training", "nll after it", "measured"]
    tables = []
    for evaluation in evaluations:
        if evaluation["selection"] and len(evaluation["selection"]["candidates"]) > 1:
            chosen = _chosen(evaluation)
            candidates = evaluation["selection"]["candidates"]
            rows = [
                [
                    entry["pattern"],
                    entry["source"],
                    f"{entry['estimated']:.3f}",
                    cell(entry["supernet_nll"], "{:.3f}".format),
                    f"{entry['proxy_share']:.0%}",
                    f"{entry['proxy_nll']:.3f}",
                    cell(entry["measured"], "{:.3f}".format),
                ]
                for entry in candidates
            ]
            title = f"{evaluation['variant']}: proxy training of {len(candidates)} candidates"
            marks = [entry is chosen for entry in candidates]
            tables.append(table(columns, rows, text=("blocks", "source"), title=title, marks=marks))
    return tables


def path_tables(evaluations: Sequence[dict]) -> list[dict]:
    """A table with the path of every network that was searched for the quality that it keeps."""
    columns = ["blocks", "latency", "nll after proxy training", "predicted nll", "nll at the end"]
    tables = []
    for evaluation in evaluations:
        if path := evaluation["selection"] and evaluation["selection"]["path"]:
            rows = [
                [
                    step["pattern"],
                    f"{step['latency']:.3f}",
                    f"{step['proxy_nll']:.3f}",
                    *(cell(step[name], "{:.3f}".format) for name in ("predicted_nll", "final_nll")),
                ]
                for step in path
            ]
            marks = [step["pattern"] == evaluation["architecture"]["pattern"] for step in path]
            title = f"{evaluation['variant']}: networks from the slowest to the fastest"
            tables.append(table(columns, rows, text=("blocks",), title=title, marks=marks))
    return tables
