"""Networks beside their controls: the baseline, the baseline trained on, the shallow control and random networks.

A network is compared with controls of the same latency target, the same start of training and the same seed.  Losses
are compared in pairs (planer/paired.py): over the segments of the test text with one control; over the controls with
several random ones; over the seeds where a network has several.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from planer.evaluation.page import table
from planer.paired import CONFIDENCE, Paired, compare_pairs
from planer.variant import Variant, parse_variant

CONTROLS = {
    "baseline": "the baseline",
    "continued": "the baseline trained on",
    "shallow": "the shallow control",
    "random": "random networks",
}
"""What networks are compared with, and what the report calls it."""
RELATIONS = {"better": "better than", "worse": "worse than", "not told apart": "not told apart from"}
"""A comparison's word, before the name of the control."""
NOT_SEARCHED = ("lts", *CONTROLS)
"""Methods whose networks are compared with the baseline alone."""


@dataclass(frozen=True)
class Comparison:
    """One network, or its seeds, beside one kind of control on the test split."""

    network: str
    control: str
    """A key of CONTROLS."""
    quality: float
    """Of the network, in the experiment's unit; the mean over seeds."""
    references: tuple[float, ...]
    """Of every control, in the same unit."""
    pairs: str
    """What the pairs are: segments, networks or seeds."""
    paired: Paired
    """Of nll, in nats per token."""

    @property
    def phrase(self) -> str:
        """The finding in words: ``better than random networks``."""
        return f"{RELATIONS[self.paired.word]} {CONTROLS[self.control]}"


def compare_with_controls(evaluation: dict, evaluations: Sequence[dict] = ()) -> list[Comparison]:
    """A network beside each of its controls among the evaluations, in the order of CONTROLS.

    The baseline's values stand in the evaluation itself.  A control is compared with the baseline alone, the baseline
    with nothing.
    """
    variant = parse_variant(evaluation["variant"])
    if variant.method == "baseline":
        return []
    found = {"baseline": [evaluation["baseline"]["quality"]] if evaluation["baseline"]["quality"] else []}
    if variant.method not in NOT_SEARCHED:
        others = [(parse_variant(other["variant"]), other["quality"]) for other in evaluations]
        for control in ("continued", "shallow", "random"):
            found[control] = [quality for other, quality in others if _is_control(other, control, variant)]
    own = evaluation["quality"]
    return [_compare(variant.name, control, own, references) for control, references in found.items() if references]


def _is_control(other: Variant, control: str, variant: Variant) -> bool:
    """Whether a network is a control of this kind for the variant: same target, same start, same seed."""
    if other.method != control or (other.scratch, other.repeat) != (variant.scratch, variant.repeat):
        return False
    return control == "continued" or other.target == variant.target


def _compare(network: str, control: str, own: dict, references: Sequence[dict]) -> Comparison:
    unit = own["unit"]
    quality, *others = (known["final"]["test"][unit] for known in (own, *references))
    if len(references) == 1:
        segments = own["segments"]
        losses = (segments["nll"], references[0]["segments"]["nll"], segments["tokens"])
        return Comparison(network, control, quality, tuple(others), "segments", compare_pairs(*losses))
    losses = [known["final"]["test"]["nll"] for known in references]
    paired = compare_pairs([own["final"]["test"]["nll"]] * len(losses), losses)
    return Comparison(network, control, quality, tuple(others), "networks", paired)


def compare_seeds(evaluations: Sequence[dict]) -> list[Comparison]:
    """Networks with several seeds beside their controls, paired by seed; seeds without a control do not count."""
    found: dict[tuple[Variant, str], list[Comparison]] = {}
    for evaluation in evaluations:
        variant = parse_variant(evaluation["variant"])
        same = replace(variant, name="", repeat=0)
        for comparison in compare_with_controls(evaluation, evaluations):
            found.setdefault((same, comparison.control), []).append(comparison)
    return [_over_seeds(seeds) for seeds in found.values() if len(seeds) > 1]


def _over_seeds(seeds: Sequence[Comparison]) -> Comparison:
    references = [seed.paired.reference for seed in seeds]
    losses = [seed.paired.reference + seed.paired.difference for seed in seeds]
    name = seeds[0].network.partition("-seed")[0]
    return Comparison(
        f"{name} ({len(seeds)} seeds)",
        seeds[0].control,
        float(np.mean([seed.quality for seed in seeds])),
        tuple(float(np.mean(seed.references)) for seed in seeds),
        "seeds",
        compare_pairs(losses, references),
    )


def control_table(evaluations: Sequence[dict]) -> dict | None:
    """The report's table of all comparisons; None where there is none."""
    own = [comparison for evaluation in evaluations for comparison in compare_with_controls(evaluation, evaluations)]
    comparisons = [*own, *compare_seeds(evaluations)]
    if not comparisons:
        return None
    unit = evaluations[0]["quality"]["unit"]
    columns = ["network", "compared with", f"test {unit}", f"control's {unit}", "nll", f"{CONFIDENCE:.0%} interval"]
    columns += ["finding", "pairs"]
    rows = [
        [
            found.network,
            CONTROLS[found.control],
            f"{found.quality:.3f}",
            _mean(found.references),
            f"{found.paired.share:+.2%}",
            interval(found.paired),
            found.paired.word,
            _pairs(found),
        ]
        for found in comparisons
    ]
    return table(columns, rows, text=("network", "compared with", "finding", "pairs"))


def shallow_finding(evaluations: Sequence[dict]) -> str | None:
    """Whether a searched network is better than the shallow control of its target; None where none has one.

    Of a network with several seeds the comparison over seeds counts.
    """
    seeds = [found for found in compare_seeds(evaluations) if found.control == "shallow"]
    several = [found.network.partition(" (")[0] for found in seeds]
    single = [
        found for e in evaluations for found in compare_with_controls(e, evaluations) if found.control == "shallow"
    ]
    comparisons = [*seeds, *(found for found in single if found.network.partition("-seed")[0] not in several)]
    if not comparisons:
        return None
    better = [found for found in comparisons if found.paired.word == "better"]
    listed = "; ".join(
        f"{found.network} has {found.paired.share:+.2%} nll ({CONFIDENCE:.0%} interval {interval(found.paired)})"
        for found in better or comparisons
    )
    opening = "Better than the shallow control" if better else "No searched network is better than the shallow control"
    return f"{opening} of its latency target: {listed}."


def interval(paired: Paired) -> str:
    """Both ends of an interval of nll, as shares of the reference's."""
    low, high = paired.share_interval
    return f"{low:+.2%} to {high:+.2%}" if np.isfinite(high) else "unknown"


def _pairs(found: Comparison) -> str:
    """How many pairs of what, where that is no text."""
    return found.pairs if found.pairs == "segments" else f"{len(found.references)} {found.pairs}"


def _mean(values: Sequence[float]) -> str:
    """Mean, with its standard error where there are several values."""
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{np.mean(values):.3f} \u00b1 {np.std(values, ddof=1) / len(values) ** 0.5:.3f}"
