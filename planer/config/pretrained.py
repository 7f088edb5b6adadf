"""An experiment on a pretrained network, or on one of transformers' families that is trained here.

``config/pretrained.yaml`` has every key with its explanation and default.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from planer.config.bounds import (
    Batch,
    Length,
    PositiveShare,
    Rounds,
    Share,
    StepsOrNone,
    Weight,
    Width,
)
from planer.config.conversion import ClusterConfig
from planer.config.experiment import RuntimeConfig
from planer.config.paths import check_path
from planer.config.strict_yaml import outermost_keys
from planer.config.training import LoopConfig
from planer.config.variant import check_name
from planer.errors import UserError
from planer.parsing import Items, Range, show

HEADS = {
    "text": "causal_lm",
    "masked_tokens": "masked_lm",
    "labelled_text": "sequence_classification",
    "labelled_images": "image_classification",
}
"""The head of a network for each kind of task."""
METRICS = {
    "text": ("nll", "ppl"),
    "masked_tokens": ("nll", "ppl"),
    "labelled_text": ("accuracy", "macro_f1", "nll"),
    "labelled_images": ("accuracy", "macro_f1", "nll"),
}
"""Metrics of each kind of task, the default headline first."""
SECTIONS = ("projections", "sparsify", "cluster_experts", "train_routers", "thresholds", "evaluate")
"""Sections that an arm may change.  All arms start from one fine-tuned network."""
SELECTORS = ("dynamic_k", "absolute", "top_k", "cumulative")
"""Rules by which a token selects experts, as planer/conversion/selectors.py explains them."""
DENSE, CONTINUED = "dense", "dense_continued"
"""Arms that others are compared with: the fine-tuned network, and the same trained on as long as sparsification."""
SHARED = "shared"
"""No arm: planer/workflow/tracking/variants.py calls the stages so that belong to none."""
WITHOUT_PENALTY = {"on": "none", "weight": 0.0}
"""What ``dense_continued`` changes in the section sparsify."""


class NetworkKeys(dict):
    """Keys and values of a config.json of transformers."""

    @classmethod
    def from_values(cls, values: object, path: str) -> NetworkKeys:
        """Raises UserError when it is no mapping, or lacks model_type."""
        if not isinstance(values, dict):
            raise UserError(f"config: {path} is {show(values)}; it must be a mapping, {{}} for none")
        if values and not isinstance(values.get("model_type"), str):
            problem = f"is {show(values['model_type'])}" if "model_type" in values else "is missing"
            raise UserError(f"config: {path}.model_type {problem}; name a family, such as gpt2")
        return cls(values)


@dataclass(frozen=True)
class PretrainedConfig:
    """The network that an experiment starts from."""

    folder: str
    config: NetworkKeys
    tokenizer: str
    attention: Literal["sdpa", "eager"]

    def __post_init__(self) -> None:
        if bool(self.folder) == bool(self.config):
            raise UserError(f"folder: name a folder or a config, {'not both' if self.folder else 'one of them'}")
        if self.tokenizer and self.folder:
            raise UserError("tokenizer is for pretrained.config; a folder has its own: leave it out")
        for key in ("folder", "tokenizer"):
            check_path(key, getattr(self, key))


@dataclass(frozen=True)
class SplitConfig:
    """Shares of the training samples that become other splits."""

    valid: PositiveShare
    test: PositiveShare

    def __post_init__(self) -> None:
        if self.valid + self.test >= 1:
            raise UserError(f"valid and test are {self.valid:g} and {self.test:g}; together they must be below 1")


@dataclass(frozen=True)
class TaskConfig:
    """What the network is used for, and with which data."""

    kind: Literal["text", "masked_tokens", "labelled_text", "labelled_images"]
    train: str
    valid: str
    test: str
    text_column: str
    text_pair_column: str
    label_column: str
    max_length: Annotated[int, Range(2, 65_536)]
    block_size: Length
    split: SplitConfig
    metric: str

    def __post_init__(self) -> None:
        if not self.train:
            raise UserError("train is empty; name a file or folder")
        if self.kind == "text" and self.block_size < 2:
            raise UserError("block_size is 1; timing a decoder needs a token before the last: at least 2")
        if self.kind == "masked_tokens" and self.block_size < 3:
            raise UserError(f"block_size is {self.block_size}; a block of masked_tokens has 2 special ones: at least 3")
        for key in ("train", "valid", "test"):
            check_path(key, getattr(self, key))
        allowed = METRICS[self.kind]
        if self.metric not in ("auto", *allowed):
            raise UserError(f"metric is {show(self.metric)}; allowed for {self.kind}: auto, {', '.join(allowed)}")

    @property
    def head(self) -> str:
        """The network's head, as planer/pretrained/load.py names it."""
        return HEADS[self.kind]

    @property
    def headline(self) -> str:
        """The metric that arms are compared by."""
        return METRICS[self.kind][0] if self.metric == "auto" else self.metric


@dataclass(frozen=True)
class FinetuneConfig(LoopConfig):
    """Dense training.  0 steps leave the network as it is."""

    steps: StepsOrNone
    accumulate: Batch

    def __post_init__(self) -> None:
        if self.batch % self.accumulate:
            raise UserError(f"accumulate is {self.accumulate}; it must divide batch, which is {self.batch}")


@dataclass(frozen=True)
class SiteProjectionConfig(LoopConfig):
    """Distillation of MLPs that replace attention projections."""

    replace: Annotated[tuple[Literal["query", "key", "value", "output"], ...], Items(0, 4)]
    width_factor: Annotated[float, Range(0.01, 100)]
    activation: Literal["relu", "same"]
    dropout: Share
    weight: Weight
    ramp: Literal["none", "linear", "linear_warmup"]


@dataclass(frozen=True)
class SiteSparsifyConfig(FinetuneConfig):
    """Fine-tuning that makes activations sparse."""

    start: Literal["folder", "dense"]
    on: Literal["relu", "displaced", "none"]
    penalty: Literal["hoyer", "l1"]
    displacement: Annotated[float, Range(-1_000, 1_000)]
    weight: Weight
    ramp: Literal["none", "linear", "linear_warmup"]


@dataclass(frozen=True)
class SiteClusterConfig(ClusterConfig):
    """Splitting feed-forward layers into experts."""

    features: Literal["weights", "activations"]
    tokens: Annotated[int, Range(1, 10_000_000)]


@dataclass(frozen=True)
class SiteRouterConfig(LoopConfig):
    """Training of routers."""

    width: Width
    target: Literal["norm", "moefication"]


@dataclass(frozen=True)
class NeuronThresholdConfig:
    """Thresholds on single neurons, without training."""

    score: Literal["gate", "product"]
    tokens: Annotated[int, Range(1, 10_000_000)]
    shares: Annotated[tuple[PositiveShare, ...], Items(1, 100)]
    allocation: Literal["uniform", "greedy"]


@dataclass(frozen=True)
class ArmEvaluateConfig:
    """Quality, FLOPs and latency over a range of settings of each selector."""

    selectors: Annotated[tuple[Literal[SELECTORS], ...], Items(1, 4)]
    taus: Annotated[tuple[Annotated[float, Range(0, 1)], ...], Items(0, 100)]
    shares: Annotated[tuple[PositiveShare, ...], Items(1, 100)]
    bounds: Annotated[tuple[Literal["random", "oracle"], ...], Items(0, 2)]
    batches: Annotated[tuple[Batch, ...], Items(1, 20)]
    tolerance: Share
    latency_rounds: Rounds

    def __post_init__(self) -> None:
        if "dynamic_k" in self.selectors and not self.taus:
            raise UserError("taus is empty; name thresholds, or leave dynamic_k out of selectors")


@dataclass(frozen=True)
class Arm:
    """One way to make the network faster: a method, and what differs from the experiment's sections."""

    method: Literal["dense", "experts", "threshold"]
    overrides: Mapping[str, dict]

    @classmethod
    def from_values(cls, values: object, path: str) -> Arm:
        """Raises UserError for an unknown method or section.  The values of sections are checked by ``arm_values``."""
        if not isinstance(values, dict):
            raise UserError(f"config: {path} is {show(values)}; it must be a mapping with a method")
        methods = ("dense", "experts", "threshold")
        if values.get("method") not in methods:
            raise UserError(f"config: {path}.method is {show(values.get('method'))}; allowed: {', '.join(methods)}")
        overrides = {name: section for name, section in values.items() if name != "method"}
        for name, section in overrides.items():
            if name not in SECTIONS:
                raise UserError(f"config: unknown key {path}.{name}; allowed: method, {', '.join(SECTIONS)}")
            if not isinstance(section, dict):
                raise UserError(f"config: {path}.{name} is {show(section)}; it must be a mapping of keys to values")
        return cls(values["method"], overrides)


@dataclass(frozen=True)
class PretrainedExperiment(RuntimeConfig):
    """One experiment: a network, a task, and arms that are compared."""

    pretrained: PretrainedConfig
    task: TaskConfig
    finetune: FinetuneConfig
    projections: SiteProjectionConfig
    sparsify: SiteSparsifyConfig
    cluster_experts: SiteClusterConfig
    train_routers: SiteRouterConfig
    thresholds: NeuronThresholdConfig
    evaluate: ArmEvaluateConfig
    arms: dict[str, Arm]

    def __post_init__(self) -> None:
        for name, arm in self.arms.items():
            check_name("arms:", name)
            if name == SHARED:
                raise UserError(f"arms: {SHARED} is what MLflow calls the stages of no arm; give the arm another name")
            if re.search(r"-seed\d*$", name):
                raise UserError(f"arms: {show(name)}: -seed<k> is for repeats; give the arm another name")
            if (name in (DENSE, CONTINUED)) != (arm.method == DENSE):
                allowed = f"the arms {DENSE} and {CONTINUED} have the method {DENSE}, and no others"
                raise UserError(f"arms: {name} has the method {arm.method}; {allowed}")
            if name == DENSE and set(arm.overrides) - {"evaluate"}:
                raise UserError(f"arms: {DENSE} changes evaluate only; all arms start from the section finetune")
            if name == CONTINUED and (
                set(arm.overrides) - {"evaluate", "sparsify"} or arm.overrides.get("sparsify") != WITHOUT_PENALTY
            ):
                kept = "its sparsify is {on: none, weight: 0.0}, so that it trains as the others do"
                raise UserError(f"arms: {CONTINUED} changes evaluate only; {kept}")
        if self.pretrained.config and self.sparsify.start == "folder":
            raise UserError(
                "sparsify.start is 'folder', which holds random weights; write dense for a pretrained.config"
            )


def pretrained_names(files: Mapping[str, Path]) -> list[str]:
    """Names of the experiments, of all files by name, that have a key ``pretrained``, themselves or in a base.

    Every start of the workflow reads all files; mistakes in them are found when the experiment is asked for.
    """
    keys = {name: outermost_keys(path) for name, path in files.items()}
    found = {name for name, values in keys.items() if "pretrained" in values}
    for _ in keys:
        found |= {name for name, values in keys.items() if values.get("base") in found}
    return sorted(found)
