"""Networks beside their controls: the baseline, the baseline trained on, the shallow control and random networks.

A network is compared with controls of the same latency target, the same start of training and the same seed.  Losses
are compared in pairs (planer/paired.py): over the segments of the test text with one control; over the controls with
several random ones; over the seeds where a network has several.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from planer.config.variant import Variant, parse_variant
from planer.paired import Paired, compare_pairs

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

    The evaluation itself has the baseline's values.  A control is compared with the baseline alone, the baseline with
    nothing.
    """
    variant = parse_variant(evaluation["variant"])
    if variant.method == "baseline":
        return []
    found = {"baseline": [evaluation["baseline"]["quality"]] if evaluation["baseline"]["quality"] else []}
    if variant.method not in NOT_SEARCHED:
        others = [(parse_variant(other["variant"]), other["quality"]) for other in evaluations]
        for control in ("continued", "shallow", "random"):
            found[control] = [quality for other, quality in others if _is_control(other, control, variant)]
    quality = evaluation["quality"]
    return [_compare(variant.name, control, quality, references) for control, references in found.items() if references]


def _is_control(other: Variant, control: str, variant: Variant) -> bool:
    """Whether a network is a control of this kind for the variant: same target, same start, same seed."""
    if other.method != control or (other.scratch, other.repeat) != (variant.scratch, variant.repeat):
        return False
    return control == "continued" or other.target == variant.target


def _compare(network: str, control: str, quality: dict, references: Sequence[dict]) -> Comparison:
    unit = quality["unit"]
    value, *others = (one["final"]["test"][unit] for one in (quality, *references))
    if len(references) == 1:
        segments = quality["segments"]
        losses = (segments["nll"], references[0]["segments"]["nll"], segments["tokens"])
        return Comparison(network, control, value, tuple(others), "segments", compare_pairs(*losses))
    losses = [reference["final"]["test"]["nll"] for reference in references]
    paired = compare_pairs([quality["final"]["test"]["nll"]] * len(losses), losses)
    return Comparison(network, control, value, tuple(others), "networks", paired)


def compare_seeds(evaluations: Sequence[dict]) -> list[Comparison]:
    """Networks with several seeds and their controls, paired by seed; seeds without a control do not count."""
    found: dict[tuple[Variant, str], list[Comparison]] = {}
    for evaluation in evaluations:
        variant = parse_variant(evaluation["variant"])
        same = replace(variant, repeat=0)
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
