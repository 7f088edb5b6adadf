"""The report's section on repeats of a search."""

from __future__ import annotations

from planer.evaluation.repeatability import MAX_REPEATS
from planer.report.page import section, table


def repeatability_section(report: dict) -> dict:
    """The report's section on repeatability.json."""
    latency, quality, test = report["latency"], report["quality"], report["non_inferiority"]
    unit, positions = quality["unit"], report["agreement"]["positions"]
    lines = {
        f"test {unit}": (quality["variant"], "{:.3f}"),
        f"test {unit} of the baseline": (quality["baseline"], "{:.3f}"),
        f"test {unit} over the baseline's mean": (quality["relative"], "{:.4f}"),
        "table latency over the baseline's": (latency["table"], "{:.3f}"),
        "measured latency over the baseline's": (latency["measured"], "{:.3f}"),
    }
    columns = ("mean", "standard_deviation", "min", "max")
    spreads = [[name, *(show.format(values[key]) for key in columns)] for name, (values, show) in lines.items()]
    choices = [[str(position), f"{share:.0%}"] for position, share in enumerate(positions)]
    bound = "not bounded" if test["upper_bound"] is None else f"at most {test['upper_bound']:+.2%}"
    needed = test["repeats_needed"] or f"more than {MAX_REPEATS}"
    return section(
        "Repeatability",
        (
            f"{test['n']['variant']} repeats of {report['variant']} and of the baseline, with other random numbers. "
            f"Two repeats chose the same block at {report['agreement']['mean']:.0%} of the positions. The mean test "
            f"{unit} is {test['estimate']:+.2%} off the baseline's, with {1 - test['alpha']:.0%} confidence {bound}: "
            f"{test['verdict']} at a margin of {test['margin']:.1%} (one-sided Welch test, p = {test['p_value']:.3g}). "
            f"To show it with a probability of {test['power']:.0%} for equal networks takes {needed} repeats of each."
        ),
        "",
        table(["", "mean", "standard deviation", "min", "max"], spreads),
        table(["position", "same block"], choices, title="How often two repeats chose the same block"),
    )
