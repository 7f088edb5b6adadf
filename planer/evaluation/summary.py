"""One line on a network: how fast it is and how well it predicts, beside the baseline."""

from __future__ import annotations


def summary_line(evaluation: dict) -> str:
    """Speed and test nll over the baseline's, of the dense network and of the converted one at its chosen threshold."""
    summary = evaluation["summary"]
    line, converted = f"dense, {_beside(summary['dense'])}", summary["converted"]
    if converted is None:
        return f"{line}; no threshold was chosen"
    return f"{line}; converted, tau = {converted['tau']:g}, {_beside(converted)}"


def _beside(entry: dict) -> str:
    speed = f"{entry['speed_up']:.2f} times the baseline's speed"
    return speed if entry["nll_ratio"] is None else f"{speed} at {entry['nll_ratio']:.1%} of its nll"
