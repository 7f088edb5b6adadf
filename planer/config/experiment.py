"""A whole experiment: one dataclass per top-level key of the configuration."""

from __future__ import annotations

import types
import typing
from dataclasses import dataclass
from typing import Annotated, Literal

from planer.config.conversion import ClusterConfig, ProjectionConfig, RouterConfig, SparsifyConfig, hidden_width
from planer.config.evaluation import EvaluateConfig, ParetoConfig, RepeatabilityConfig
from planer.config.latency import ProfileConfig, WorkloadConfig
from planer.config.model import DataConfig, DesignSpace, MethodsConfig, ModelConfig, PatternsConfig
from planer.config.search import CandidatesConfig, KeepConfig, SearchConfig, calls_of_limit
from planer.config.training import DistillConfig, RetrainConfig
from planer.config.variant import parse_variant
from planer.errors import UserError
from planer.parsing import Items, Matching, Range, convert
from planer.specs import from_notation


@dataclass(frozen=True)
class RuntimeConfig:
    """What every experiment has: where it computes, its seed, and how long it may train."""

    seed: Annotated[int, Range(0, 10**18 - 1)]  # no number of a configuration has more digits
    device: Annotated[str, Matching(r"auto|cpu|cuda(:(0|[1-9][0-9]{0,3}))?", "auto, cpu, cuda or cuda:<number>")]
    threads: Annotated[int, Range(1, 1_024)]
    dtype: Literal["auto", "float32", "bfloat16"]
    max_hours: Annotated[float, Range(0, 1_000_000_000, above=True)]


@dataclass(frozen=True)
class Experiment(RuntimeConfig):
    """Networks that are trained here: dataset, backbone, design space, workload and budgets."""

    default_variants: Annotated[tuple[str, ...], Items(1, 1_000)]
    default_analyses: Annotated[tuple[Literal["pareto", "repeatability"], ...], Items(0, 2)]
    data: DataConfig
    model: ModelConfig
    patterns: PatternsConfig
    design_space: DesignSpace
    search_methods: MethodsConfig
    workload: WorkloadConfig
    profile_blocks: ProfileConfig
    search: SearchConfig
    candidates: CandidatesConfig
    keep: KeepConfig
    retrain: RetrainConfig
    distill: DistillConfig
    projections: ProjectionConfig
    sparsify: SparsifyConfig
    cluster_experts: ClusterConfig
    train_routers: RouterConfig
    evaluate: EvaluateConfig
    repeatability: RepeatabilityConfig
    pareto: ParetoConfig

    def __post_init__(self) -> None:
        symbols = self.model.symbols()
        for name, pattern in self.patterns.named.items():
            try:
                from_notation(pattern, symbols)
            except ValueError as error:
                key = f"others.{name}" if name in self.patterns.others else name
                raise UserError(f"patterns.{key}: {error}") from error
        for option in self.design_space:
            self.model.option(option)
        self.search_methods.options(self.model)
        for key, variants in (
            ("default_variants", self.default_variants),
            ("repeatability.variant", (self.repeatability.variant,)),
        ):
            for name in variants:
                try:
                    self.check_variant(name)
                except UserError as error:
                    raise UserError(f"{key}: {error}") from error
        if "pareto" in self.default_analyses:
            try:
                self.check_pareto()
            except UserError as error:
                raise UserError(f"default_analyses: {error}") from error
        self._check_limits()
        executions = {"workload.execution": (self.workload.execution,)}
        executions |= {"profile_blocks.executions": self.profile_blocks.executions}
        for name, modes in executions.items():
            if "graph" in modes and self.model.head.waits_for_device:
                raise UserError(
                    f"{name}: graph cannot capture model.head {self.model.head.kind}, whose work depends on the words; "
                    "use eager or compiled"
                )
        size = self.cluster_experts.expert_size
        if self.model.d_inner % size:
            raise UserError(f"cluster_experts.expert_size: {size} must divide model.d_inner ({self.model.d_inner})")
        neurons = hidden_width(self.model.d_model, self.model.d_model, self.projections.width_factor)
        if self.projections.replace and neurons % size:
            raise UserError(
                f"cluster_experts.expert_size: {size} must divide the neurons of the MLP of a projection, which are "
                f"{neurons}; change it or projections.width_factor"
            )

    def check_variant(self, name: str) -> None:
        """Raise UserError for a variant that the experiment cannot have: its pattern or its design space is missing."""
        variant = parse_variant(name)
        if variant.pattern:
            self.patterns.of(variant.pattern)
        for option in getattr(self.search_methods, variant.method, ()):
            self.model.option(option, f"search_methods.{variant.method}")
        if variant.method in ("shallow", "keep"):
            self._check_cuts(name)
        if variant.method == "shared" and not (variant.scratch or self.candidates.needs_supernet):
            raise UserError(
                f"variant {name}: there is no supernet to share; give a number to solver or argmax of "
                "candidates.proposers"
            )

    def check_pareto(self) -> None:
        """Raise UserError where pareto.json cannot be made."""
        self.check_variant(self.pareto.shared(min(self.pareto.targets)))

    def _check_cuts(self, name: str) -> None:
        """Raise UserError where no cut of the baseline is in the design space.

        Every cut keeps the blocks before the second attention block, attention with as many heads or fewer.
        """
        options = [self.model.option(option) for option in self.design_space]
        blocks = from_notation(self.patterns.baseline, self.model.symbols())
        second = [i for i, block in enumerate(blocks) if block.remembers][1:2]
        for block in blocks[: second[0] if second else None]:
            narrow = [one for one in options if block.has_heads and one.kind == block.kind and one.size <= block.size]
            if block not in options and not narrow:
                raise UserError(f"variant {name}: design_space lacks {block.name}, which every cut keeps; add it")

    def _check_limits(self) -> None:
        """Raise UserError for a limit of a latency that is not measured."""
        work = self.workload
        for name in self.candidates.limits:
            calls = calls_of_limit(name, work)
            if calls is None:
                continue
            kind = "decode" if calls.decodes else "segment"
            if kind not in work.kinds:
                raise UserError(f"candidates.limits: {name} needs {kind} among workload.kinds")
            if kind == "segment" and calls.batch not in (work.batch, *self.profile_blocks.batches):
                raise UserError(f"candidates.limits: {name} needs {calls.batch} among profile_blocks.batches")


def sections(values: dict, root: type[RuntimeConfig] = Experiment) -> types.SimpleNamespace:
    """Some top-level keys of an experiment of a kind, each converted like ``build`` does.

    A stage gets only the sections that it reads, so that a change elsewhere does not repeat it.  Reading another
    section raises AttributeError.
    """
    hints = typing.get_type_hints(root, include_extras=True)
    return types.SimpleNamespace(**{name: convert(hints[name], value, name) for name, value in values.items()})
