"""What an experiment is: one frozen dataclass per stage, checked before any work starts.

Values come from ``config/config.yaml`` (every key, with its default), then the experiment's own file, then what
the user overlays on the command line.  The dataclasses have no defaults of their own, so there is one place to
look.  ``build`` turns the merged mapping into an ``Experiment`` or raises ``UserError`` with one line that names
the key, the value and what is allowed.
"""

from __future__ import annotations

import hashlib
import re
import types
import typing
from dataclasses import dataclass
from typing import Literal

from planer.architecture import Architecture, Attention, BlockSpec, FeedForward, MoE, Skip, from_notation
from planer.files import UserError
from planer.parsing import convert, not_negative, positive, share
from planer.variant import parse_variant


@dataclass(frozen=True)
class DataConfig:
    """Which text."""

    dataset: Literal["pysource", "enwik8", "enwik8-mini", "text8", "wikitext-103"]
    """Corpus; planer/data/corpora.py lists sources, sizes and checksums."""


@dataclass(frozen=True)
class ModelConfig:
    """The backbone that all variants of an experiment share."""

    d_model: int
    """Width of the residual stream; must be divisible by num_heads and even."""
    num_heads: int
    """Heads of a full attention block; d_head = d_model / num_heads stays fixed when heads are pruned."""
    d_inner: int
    """Hidden neurons of a feed-forward layer, and of each expert."""
    num_experts: int
    """Experts of a mixture-of-experts layer."""
    norm: Literal["post", "pre"]
    """LayerNorm after the residual sum (Transformer-XL) or before the sublayer."""
    dropout: float
    """Dropout everywhere but in mixtures of experts and on attention probabilities."""
    moe_dropout: float
    """Dropout inside mixture-of-experts layers."""
    attention_dropout: float
    """Dropout on attention probabilities."""
    init_std: float
    """Standard deviation of the normal initialisation."""

    def __post_init__(self) -> None:
        positive(self, "d_model", "num_heads", "d_inner", "num_experts", "init_std")
        share(self, "dropout", "moe_dropout", "attention_dropout")
        if self.d_model % self.num_heads or self.d_model % 2:
            raise UserError(f"d_model: {self.d_model} must be even and divisible by num_heads ({self.num_heads})")

    @property
    def d_head(self) -> int:
        """Width of one head."""
        return self.d_model // self.num_heads

    def option(self, name: str, key: str = "design_space") -> BlockSpec:
        """The block that a name stands for: skip, attention_<h>, feed_forward, feed_forward_x<s>, moe_top<k>.

        key is the config key that names it, for messages.
        """
        stem, _, number = name.rpartition("_")
        if name == "skip":
            return Skip()
        if name == "feed_forward":
            return FeedForward(self.d_inner)
        if stem == "feed_forward" and number.startswith("x") and number[1:].isdecimal() and int(number[1:]) > 1:
            return FeedForward(self.d_inner * int(number[1:]), int(number[1:]))
        if stem == "attention" and number.isdecimal():
            if not 1 <= int(number) <= self.num_heads:
                raise UserError(f"{key}: {name!r} asks for {number} heads; allowed: 1 to {self.num_heads}")
            return Attention(int(number), self.d_head)
        if stem == "moe" and number.startswith("top") and number[3:].isdecimal():
            top_k = int(number[3:])
            if not 1 <= top_k <= self.num_experts:
                raise UserError(
                    f"{key}: {name!r} has top_k {top_k}, more than num_experts allows; allowed: 1 to {self.num_experts}"
                )
            return MoE(self.d_inner, self.num_experts, top_k)
        raise UserError(
            f"{key}: unknown option {name!r}; allowed: skip, attention_<heads>, feed_forward, "
            "feed_forward_x<2 or more>, moe_top<k>"
        )

    def symbols(self) -> dict[str, BlockSpec]:
        """Pattern symbols and the blocks they stand for."""
        heads = {f"s{h}": Attention(h, self.d_head) for h in range(1, self.num_heads + 1)}
        experts = {f"m{k}": MoE(self.d_inner, self.num_experts, k) for k in range(1, self.num_experts + 1)}
        wide = {f"f{x}": FeedForward(self.d_inner * x, x) for x in range(2, self.num_experts + 1)}
        full = Attention(self.num_heads, self.d_head)
        return {"i": Skip(), "s": full, "f": FeedForward(self.d_inner), **heads, **wide, **experts}

    def architecture(self, vocab_size: int, blocks: tuple[BlockSpec, ...] | str) -> Architecture:
        """A network of this backbone; blocks may be given in pattern notation."""
        if isinstance(blocks, str):
            blocks = from_notation(blocks, self.symbols())
        shared = ("d_model", "norm", "dropout", "moe_dropout", "attention_dropout", "init_std")
        return Architecture(vocab_size=vocab_size, blocks=blocks, **{name: getattr(self, name) for name in shared})


@dataclass(frozen=True)
class PatternsConfig:
    """Networks given by their block order, in the papers' notation."""

    baseline: str
    """Transformer-XL: attention and feed-forward in turn."""
    sandwich: str
    """Sandwich Transformer: attention first, feed-forward last."""
    par: str
    """PAR: attention only where required."""


@dataclass(frozen=True)
class ArmsConfig:
    """Design spaces of the searches that target_<t> is compared with."""

    par_search: tuple[str, ...]
    """PAR (arXiv 2009.04534): attention or not."""
    isoparam: tuple[str, ...]
    """PLANER's iso-parameter arm: a dense layer as wide as all experts instead of the experts."""


@dataclass(frozen=True)
class WorkloadConfig:
    """The inference load whose latency counts."""

    batch: int
    """Sequences scored side by side."""
    tgt_len: int
    """Tokens scored per call and sequence."""
    mem_len: int
    """Remembered positions that each call attends to."""
    attention: Literal["cached", "recompute"]
    """Keep keys and values of the memory (exact at inference), or recompute them from hidden states (the paper)."""
    execution: Literal["eager", "compiled", "graph"]
    """Kernel by kernel, blocks compiled by torch.compile, or replayed as a CUDA graph (CUDA only)."""

    def __post_init__(self) -> None:
        positive(self, "batch", "tgt_len")
        not_negative(self, "mem_len")


@dataclass(frozen=True)
class ProfileConfig:
    """Measuring the latency table and checking that latencies add up."""

    copies: int
    """N: a block's cost is the difference between stacks of 2N and N copies, over N."""
    warmup: int
    """Calls before timing starts, per stack."""
    rounds: int
    """Timed rounds; every round measures every stack once, in random order."""
    max_seconds: float
    """Stop after this long, at a whole round and after at least three."""
    batches: tuple[int, ...]
    """Batch sizes measured beside workload.batch; each takes up to max_seconds."""
    executions: tuple[Literal["eager", "compiled", "graph"], ...]
    """Execution modes measured beside workload.execution, for all batch sizes; each takes up to max_seconds."""
    networks: int
    """Random networks measured against the sum of their table entries."""
    min_r: float
    """Pearson's correlation of these sums with the measured latencies should be at least this."""
    max_mape: float
    """Their mean absolute error, as a share of the measured latency, should be at most this."""
    max_ape: float
    """The largest of these errors should be at most this."""

    def __post_init__(self) -> None:
        positive(self, "copies", "rounds", "max_seconds", "networks", "max_mape", "max_ape")
        share(self, "min_r")
        not_negative(self, "warmup")
        for batch in self.batches:
            if batch < 1:
                raise UserError(f"batches: {batch} must be above 0")


@dataclass(frozen=True)
class OptimizerConfig:
    """One optimiser and its learning-rate schedule."""

    name: Literal["lamb", "adamw"]
    """LAMB as in NVIDIA's JITLamb (clamped weight norm, no bias correction), or AdamW."""
    lr: float
    """Peak learning rate."""
    lr_min: float
    """Learning rate at the last step of the cosine."""
    warmup_steps: int
    """Linear warm-up."""
    betas: tuple[float, float]
    """Decay of the two moments."""
    eps: float
    """Added to the root of the second moment."""
    weight_decay: float
    """Decoupled weight decay."""
    clip: float
    """Largest global gradient norm; 0 switches clipping off."""

    def __post_init__(self) -> None:
        positive(self, "lr", "eps")
        not_negative(self, "lr_min", "warmup_steps", "weight_decay", "clip")


@dataclass(frozen=True)
class TrainingConfig:
    """What the one training loop needs, whatever it trains."""

    batch: int
    """Streams read side by side."""
    tgt_len: int
    """Tokens per stream and step."""
    mem_len: int
    """Remembered positions."""
    steps: int
    """Optimiser steps."""
    optimizer: OptimizerConfig
    log_steps: int
    """Steps averaged into one row of history."""
    checkpoint_steps: int
    """Steps between checkpoints."""

    def __post_init__(self) -> None:
        positive(self, "batch", "tgt_len", "steps", "log_steps", "checkpoint_steps")
        not_negative(self, "mem_len")


@dataclass(frozen=True)
class SearchConfig(TrainingConfig):
    """Phase 1: supernet weights and architecture weights in turn."""

    epoch_steps: int
    """Weight steps per search epoch (annealing and the freeze count epochs); 0 means one pass over the corpus."""
    alpha_share: float
    """Share of an epoch's samples on which the architecture weights are trained, soft-sampled."""
    frozen_share: float
    """Share of epochs at the start during which the architecture weights stay frozen."""
    temperature: float
    """Gumbel-softmax temperature until annealing starts."""
    anneal: float
    """Factor on the temperature after each unfrozen epoch."""
    temperature_floor: float
    """The temperature never falls below this (below about 0.1 gradients vanish or spike)."""
    latency_loss: Literal["switch", "hinge", "dual"]
    """How the latency loss presses: beta on or off (the paper), a smooth hinge, or a multiplier by dual ascent."""
    latency_weight: float
    """beta while the expected latency exceeds the target; slope of the hinge; step size of the dual ascent."""
    alpha_optimizer: OptimizerConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "temperature", "anneal", "temperature_floor")
        not_negative(self, "epoch_steps", "latency_weight")
        share(self, "alpha_share", "frozen_share")


LIMITS = ("params", "active_params", "flops", "memory")
"""What a chosen network can be held to beside its latency; and latency_batch_<b>: its latency at another batch size."""


def batch_of_limit(name: str) -> int | None:
    """The batch size b of a limit latency_batch_<b>; None for other limits."""
    stem, _, batch = name.rpartition("_")
    return int(batch) if stem == "latency_batch" and batch.isdecimal() else None


@dataclass(frozen=True)
class SampleConfig:
    """From a trained supernet to one architecture."""

    solver: Literal["milp", "argmax"]
    """Best total score within the latency budget, proven; or the paper's argmax, which can miss the target."""
    scores: Literal["replace_one", "alpha"]
    """What the solver maximises: the fall of the supernet's validation loss when one option is switched, or the
    logarithm of the architecture weights' softmax."""
    rounds: int
    """How often replace_one scores anew around the network chosen last."""
    tokens: int
    """Validation text that replace_one reads per network."""
    limits: dict[str, float]
    """Further limits as shares of the baseline's: params, active_params, flops, memory, latency_batch_<b>."""
    slack: float
    """Share of the latency budget that may stay unused where some network uses more; milp only."""
    num_solutions: int
    """Networks listed in architecture.yaml; the first is used, the others are the best that are left."""
    min_distance: int
    """Positions at which any two of them differ."""
    corrections: int
    """How often the network may be measured, found slower than its target, and chosen again; 0: not measured."""
    measure_rounds: int
    """Timed rounds per measurement, in turn with the baseline."""

    def __post_init__(self) -> None:
        positive(self, "rounds", "tokens", "slack", "num_solutions", "min_distance", "measure_rounds")
        not_negative(self, "corrections")
        for name, value in self.limits.items():
            if name not in LIMITS and batch_of_limit(name) is None:
                allowed = ", ".join((*LIMITS, "latency_batch_<b>"))
                raise UserError(f"limits: unknown limit {name!r}; allowed: {allowed}")
            if value <= 0:
                raise UserError(f"limits: {name} is {value}; it must be above 0")


@dataclass(frozen=True)
class RetrainConfig(TrainingConfig):
    """Phase 2: training the chosen network."""

    balance_weight: float
    """lambda of the Switch load-balancing loss."""
    eval_steps: int
    """Steps between validations; the last step is always validated."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "eval_steps")
        not_negative(self, "balance_weight")


@dataclass(frozen=True)
class DistillConfig:
    """The baseline as a second teacher in the retraining of <variant>-distill."""

    weight: float
    """w: share of the divergence from the teacher in the loss; the cross-entropy has the rest."""
    temperature: float
    """T: both networks' logits are divided by it where they are compared."""

    def __post_init__(self) -> None:
        positive(self, "temperature")
        if not 0 <= self.weight <= 1:
            raise UserError(f"weight is {self.weight}; it must be in [0, 1]")


@dataclass(frozen=True)
class SparsifyConfig(TrainingConfig):
    """Fine-tuning that enforces activation sparsity in the dense feed-forward layers."""

    penalty: Literal["hoyer", "l1"]
    """Square Hoyer (sum |a|)^2 / sum a^2, or the L1 norm, per token, on post-ReLU activations."""
    weight: float
    """alpha: weight of the penalty after the ramp."""
    ramp: Literal["none", "linear", "linear_warmup"]
    """Constant alpha, alpha * t/T, or alpha * min(1, t/(T/2))."""
    balance_weight: float
    """lambda of the Switch load-balancing loss, for networks with mixtures of experts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        not_negative(self, "weight", "balance_weight")


@dataclass(frozen=True)
class ClusterConfig:
    """Splitting dense layers into experts."""

    expert_size: int
    """Neurons per expert; must divide d_inner."""
    restarts: int
    """k-means initialisations; the best is kept."""
    max_iterations: int
    """Lloyd iterations per initialisation."""

    def __post_init__(self) -> None:
        positive(self, "expert_size", "restarts", "max_iterations")


@dataclass(frozen=True)
class RouterConfig(TrainingConfig):
    """Routers that regress the norm of each expert's output."""

    width: int
    """Hidden neurons of the two-layer router."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "width")


@dataclass(frozen=True)
class EvaluateConfig:
    """Quality, latency and the dynamic-k sweep."""

    batch: int
    """Streams scored side by side."""
    tgt_len: int
    """Tokens per call of the headline protocol; with same_length it does not change the result."""
    mem_len: int
    """Remembered positions of the headline protocol."""
    clamp_len: int
    """Distances beyond this are treated as this far; needed when mem_len exceeds what training saw. 0 is off."""
    taus: tuple[float, ...]
    """Dynamic-k thresholds; 0 (all experts) is always evaluated."""
    latency_rounds: int
    """Interleaved repeats of each latency measurement."""

    def __post_init__(self) -> None:
        positive(self, "batch", "tgt_len", "latency_rounds")
        not_negative(self, "mem_len", "clamp_len")
        for tau in self.taus:
            if not 0 <= tau <= 1:
                raise UserError(f"taus: {tau} is outside 0 to 1")


@dataclass(frozen=True)
class RepeatabilityConfig:
    """Repeats of one variant and of the baseline, with other random streams."""

    variant: str
    """What is repeated."""
    seeds: int
    """Repeats of each, the first without a suffix."""
    margin: float
    """The variant may be worse than the baseline by this share and still count as no worse."""
    power: float
    """Wanted chance that the test shows this for a variant as good as the baseline."""
    alpha: float
    """Chance that the test shows this for a variant that is worse by the margin."""

    def __post_init__(self) -> None:
        variant = parse_variant(self.variant)
        if variant.repeat or self.variant == "baseline":
            raise UserError(f"variant is {self.variant!r}; it must be a variant other than baseline, without -seed<k>")
        if self.seeds < 2:
            raise UserError(f"seeds is {self.seeds}; a spread needs at least 2")
        positive(self, "margin", "power", "alpha")
        share(self, "margin", "power", "alpha")

    def repeats(self, variant: str) -> list[str]:
        """Names of a variant's repeats."""
        return [variant, *(f"{variant}-seed{k}" for k in range(1, self.seeds))]


@dataclass(frozen=True)
class ParetoConfig:
    """Networks for many targets out of one supernet."""

    targets: tuple[float, ...]
    """Wanted latencies over the baseline's."""
    compared: tuple[float, ...]
    """Targets whose network is retrained, beside that of a search of its own."""

    def __post_init__(self) -> None:
        for target in self.targets:
            parse_variant(self.own(target))
        if len({self.own(target) for target in self.targets}) < len(self.targets):
            raise UserError(f"targets: {list(self.targets)} must name each target once")
        if len(set(self.compared)) < 3 or not set(self.compared) <= set(self.targets):
            raise UserError(f"compared: {list(self.compared)} must be at least three of the targets")

    @property
    def supernet(self) -> str:
        """The variant whose supernet serves all targets: the mildest."""
        return self.own(max(self.targets))

    def own(self, target: float) -> str:
        """The variant with a search of its own for a target."""
        return f"target_{target:g}"

    def shared(self, target: float) -> str:
        """The variant that is chosen for a target from the common supernet.

        For the mildest target that supernet is its own, and shared_<t> would be the same network as target_<t>.
        """
        return self.supernet if target == max(self.targets) else f"shared_{target:g}"


@dataclass(frozen=True)
class Experiment:
    """One experiment: dataset, backbone, design space, workload and budgets."""

    seed: int
    """Every random stream is derived from this."""
    device: str
    """auto, cpu, cuda or cuda:<n>."""
    threads: int
    """CPU threads of every job; part of the latency table's identity."""
    dtype: Literal["auto", "float32", "bfloat16"]
    """Arithmetic of matrix products; auto is bfloat16 on CUDA and float32 on CPU."""
    max_hours: float
    """An experiment estimated to train longer than this on the device at hand is refused; raise it to go on."""
    default_variants: tuple[str, ...]
    """Variants of comparison.parquet and report.html."""
    data: DataConfig
    model: ModelConfig
    patterns: PatternsConfig
    design_space: tuple[str, ...]
    """Options of every searched position: skip, attention_<heads>, feed_forward, feed_forward_x<s>, moe_top<k>."""
    arms: ArmsConfig
    workload: WorkloadConfig
    profile_blocks: ProfileConfig
    search: SearchConfig
    sample_architecture: SampleConfig
    retrain: RetrainConfig
    distill: DistillConfig
    sparsify: SparsifyConfig
    cluster_experts: ClusterConfig
    train_routers: RouterConfig
    evaluate: EvaluateConfig
    repeatability: RepeatabilityConfig
    pareto: ParetoConfig

    def __post_init__(self) -> None:
        positive(self, "threads", "max_hours")
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise UserError(f"device is {self.device!r}; allowed: auto, cpu, cuda, cuda:<number>")
        symbols = self.model.symbols()
        for name in ("baseline", "sandwich", "par"):
            try:
                from_notation(getattr(self.patterns, name), symbols)
            except ValueError as error:
                raise UserError(f"patterns.{name}: {error}") from error
        spaces = {"design_space": self.design_space} | {
            f"arms.{name}": space for name, space in vars(self.arms).items()
        }
        for name, space in spaces.items():
            if len(set(space)) != len(space) or len(space) < 2:
                raise UserError(f"{name}: {list(space)} must name at least two options, each once")
            for option in space:
                self.model.option(option, name)
        measured = (self.workload.batch, *self.profile_blocks.batches)
        for name in self.sample_architecture.limits:
            if (batch := batch_of_limit(name)) is not None and batch not in measured:
                raise UserError(f"sample_architecture.limits: {name} needs {batch} among profile_blocks.batches")
        size = self.cluster_experts.expert_size
        if self.model.d_inner % size:
            raise UserError(f"cluster_experts.expert_size: {size} must divide model.d_inner ({self.model.d_inner})")


def sections(values: dict) -> types.SimpleNamespace:
    """Some top-level keys of an experiment, each converted like ``build`` does.

    A stage is given only the sections it reads, so that a change elsewhere does not repeat it; reading a section
    that the stage was not given raises AttributeError.
    """
    hints = typing.get_type_hints(Experiment)
    return types.SimpleNamespace(**{name: convert(hints[name], value, name) for name, value in values.items()})


def derive_seed(seed: int, *names: object) -> int:
    """A seed of its own for each named random stream, the same on every machine (31 bits)."""
    text = "/".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1
