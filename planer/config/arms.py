"""Arms of an experiment on a pretrained network: their values, what they are compared with, and stages they share."""

from __future__ import annotations

import re
from collections.abc import Iterable

from planer.config.pretrained import CONTINUED, DENSE, SELECTORS, PretrainedExperiment
from planer.config.variant import MOST
from planer.errors import UserError
from planer.parsing import build, merge, show

STAGES = {
    "projections": ("projections",),
    "sparsify": ("projections", "sparsify"),
    "cluster": ("projections", "sparsify", "cluster_experts"),
    "routers": ("projections", "sparsify", "cluster_experts", "train_routers"),
    "thresholds": ("projections", "sparsify", "thresholds"),
}
"""Stages of arms, and the sections that their results depend on beside the experiment and the seed."""
TRAININGS = {"projections": "projections", "sparsify": "sparsify", "routers": "train_routers"}
"""Stages of arms that train, and their sections."""
METHODS = {"cluster": ("experts",), "routers": ("experts",), "thresholds": ("threshold",)}
"""Methods that run a stage.  ``is_sparsified`` and ``replaces_projections`` tell which arms run the other stages."""


def arm_values(values: dict, variant: str) -> dict:
    """Values of an experiment with the overrides of one of its variants, checked.

    Raises UserError for a variant without an arm, and naming the key of a wrong override.
    """
    name = arm_name(values, variant)
    merged = _merged(values, name)
    try:
        build(PretrainedExperiment, merged)
    except UserError as error:
        raise UserError(f"{error} (arms.{name})") from error
    return merged


def arm_name(values: dict, variant: str) -> str:
    """The arm of a variant.  Raises UserError when there is none such."""
    name, _ = split_seed(variant)
    if name not in values["arms"]:
        allowed = f"{', '.join(values['arms'])}; add -seed<k> to repeat one, k from 1 to {MOST}"
        raise UserError(f"unknown variant {show(variant)}; allowed: {allowed}")
    return name


def split_seed(variant: str) -> tuple[str, int]:
    """The arm of a variant, and the k of its suffix -seed<k>, 0 without one."""
    match = re.fullmatch(r"(.+)-seed([1-9]\d{0,5})", variant, re.ASCII)
    return (match[1], int(match[2])) if match else (variant, 0)


def dense_of(variant: str) -> str:
    """The dense variant with the same seed."""
    return _repeat(DENSE, variant)


def is_sparsified(values: dict, variant: str) -> bool:
    """Whether the variant runs the stage sparsify."""
    arm = values["arms"][arm_name(values, variant)]
    return arm["method"] == "experts" or "sparsify" in arm


def replaces_projections(values: dict, variant: str) -> bool:
    """Whether the variant runs the stage projections."""
    name = arm_name(values, variant)
    return values["arms"][name]["method"] != "dense" and bool(_merged(values, name)["projections"]["replace"])


def fits(selector: str, target: str, alike: bool) -> bool:
    """Whether a selector fits split layers: two need routers that predict norms, and one k as many experts in each.

    target: of the routers, as in the section train_routers.  alike: whether all layers have as many experts.
    """
    return alike if selector == "top_k" else target == "norm" or selector not in ("dynamic_k", "cumulative")


def fitting_selectors(selectors: Iterable[str], target: str, alike: bool) -> list[str]:
    """Those of evaluate.selectors that fit an arm's split layers (``fits``).  Raises UserError where none does."""
    if found := [one for one in selectors if fits(one, target, alike)]:
        return found
    allowed = ", ".join(one for one in SELECTORS if fits(one, target, alike))
    raise UserError(f"evaluate.selectors is {', '.join(selectors)}; none fits the routers; allowed: {allowed}")


def reference_of(values: dict, variant: str) -> str:
    """The dense variant that was trained as long as this one: its quality is compared with it.

    That is ``dense_continued`` where sparsification trains, else ``dense``; of both of them it is ``dense``.
    """
    name = arm_name(values, variant)
    trained = is_sparsified(values, name) and _merged(values, name)["sparsify"]["steps"] > 0
    return _repeat(CONTINUED if trained and name != CONTINUED else DENSE, variant)


def reported_arms(values: dict) -> list[str]:
    """Arms in the order of the configuration, without ``dense_continued`` where none is compared with it."""
    used = {reference_of(values, name) for name in values["arms"]}
    return [name for name in values["arms"] if name != CONTINUED or name in used]


def training_batches(values: dict) -> dict[str, int]:
    """Samples of a batch of every stage that trains, by the section that sets them: sparsify, arms.mine.sparsify."""
    batches = {"finetune": values["finetune"]["batch"]} if values["finetune"]["steps"] else {}
    for name in reported_arms(values):
        for stage, section in TRAININGS.items():
            chosen = _merged(values, name)[section]
            if _runs(values, stage, name) and chosen["steps"]:
                overridden = "batch" in values["arms"][name].get(section, {})
                batches[f"arms.{name}.{section}" if overridden else section] = chosen["batch"]
    return batches


def owner(values: dict, stage: str, variant: str) -> str:
    """The variant whose files of a stage this one uses: the first arm with equal settings, with the same seed."""
    name = arm_name(values, variant)
    settings = _settings(values, stage, name)
    running = (arm for arm in values["arms"] if _runs(values, stage, arm))
    equal = [arm for arm in running if _settings(values, stage, arm) == settings]
    return _repeat(equal[0] if name in equal else name, variant)


def check_stage(values: dict, variant: str, stage: str) -> None:
    """Raise UserError for an unknown variant, and where it does not run this stage or uses the files of another one:
    nothing is trained twice.

    stage: a name in the variant's folder; those that are not in STAGES are not checked.
    """
    name = arm_name(values, variant)
    if stage not in STAGES:
        return
    if not _runs(values, stage, name):
        stages = [one for one in STAGES if _runs(values, one, name)] or ["finetune"]
        raise UserError(f"{variant} has no stage {stage}; its stages: {', '.join(stages)}")
    if (other := owner(values, stage, variant)) != variant:
        raise UserError(f"{variant} has the same {stage} as {other}, whose files it uses; name those of {other}")


def _repeat(name: str, variant: str) -> str:
    """An arm with the seed of a variant."""
    _, repeat = split_seed(variant)
    return f"{name}-seed{repeat}" if repeat else name


def _merged(values: dict, name: str) -> dict:
    return merge(values, {key: section for key, section in values["arms"][name].items() if key != "method"})


def _settings(values: dict, stage: str, name: str) -> list:
    merged = _merged(values, name)
    if replaces_projections(values, name):
        merged["projections"] = merged["projections"] | {"start": merged["sparsify"]["start"]}
    else:
        merged["projections"] = None
    if not is_sparsified(values, name):
        merged["sparsify"] = None
    return [merged[key] for key in STAGES[stage]]


def _runs(values: dict, stage: str, name: str) -> bool:
    if stage in ("projections", "sparsify"):
        return (replaces_projections if stage == "projections" else is_sparsified)(values, name)
    return values["arms"][name]["method"] in METHODS[stage]
