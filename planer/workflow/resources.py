"""Host memory and run time that a job asks a cluster for, from the experiment's configuration alone.

Memory is what every job takes (Snakemake twice, Python, PyTorch, MLflow, CUDA), and a margin times what the stage adds:
its corpus, bytes per parameter, and, on a CPU, the activations of one step; on a GPU they are in the GPU's memory.
Time is FLOPs over a rate that slow devices reach, seconds per pass for what FLOPs do not count, and a margin.  Both are
upper estimates: which network a search will choose is not known yet, so it counts as the largest it may be.

Peaks of a few steps on a CPU, without Snakemake's 260 MiB, and what the job asks for, in MiB: search of demo 744 of
2,300, of enwik8-mini 1,397 of 6,000; retrain of enwik8-mini with mixtures of experts only 1,210 of 3,100; its stacks in
profile_blocks 1,143 of 2,600.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

from planer.config import Experiment, TrainingConfig
from planer.config.corpora import Corpus
from planer.config.text import corpus_of
from planer.config.variant import Variant, parse_variant
from planer.search.methods import candidates_config, needs_supernet, search_config
from planer.search.sharing import owners
from planer.specs import BlockSpec

MIB = 2**20
BASE_MB = 1000
"""Two Snakemake processes (260 MB, SLURM 22.05) and a job that has done nothing but imports (380 to 480 MB)."""
CUDA_MB = 3000
"""Host memory of PyTorch's CUDA libraries and of Triton's compiler."""
COMPILE_MB = 4000
"""torch.compile's worker processes."""
MARGIN = 1.5
"""Factor on memory beyond BASE_MB; twice as much on time."""
STORED_BYTES = 24
"""Host memory of a parameter that is trained on a GPU: weight and two moments on their way to and from a checkpoint."""
TRAINED_BYTES = 28
"""The same on a CPU: weight, gradient, two moments, and a checkpoint's copy while a job resumes."""
READ_BYTES = 8
"""Memory of a parameter that is read from a file and not trained, while it is read."""
LOGITS = 3 * 2**26
"""Most logits at a time, with gradient and softmax (planer.models computes at most 2**26 at once)."""
POOL_BYTES = 6 * 2**30
"""Most memory of the stacks of a latency measurement (planer.latency.networks)."""
CPU_FLOPS = 1e10
"""FLOPs per second and thread that a slow processor reaches in training; a server's core of 2023 reaches 34 to 44e9."""
GPU_FLOPS = 3e13
"""FLOPs per second that a slow GPU reaches, a tenth of an A100's peak in bfloat16."""
PASS_SECONDS = 0.1
"""Time of one step that does not depend on its FLOPs."""
FLOW_SECONDS, FLOW_BYTES = 5e-6, 200
"""Time and memory of an assignment in constrained k-means per pair of a neuron and a cluster."""
MEASUREMENT_SECONDS = 240
"""Longest measurement of a network with the baseline, or at its thresholds."""
VALID_SHARE = 0.05
"""Of a byte corpus, validation and test text each."""
TOKEN_BYTES, TEXT_BYTES = 140, 4
"""Memory of a token while a text becomes tokens, and about how much of the text it stands for."""
TASK_MB = 8000
"""Least memory for preparing a task: PyTorch, transformers, and images."""
START_MINUTES = 15
"""Start of the job, imports, reading and writing files."""


@dataclass(frozen=True)
class Request:
    """Resources of one job."""

    mem_mb: int
    """Host memory in MiB."""
    minutes: int
    """Wall-clock time."""

    def memory_of(self, attempt: int) -> int:
        """50 % more in every further attempt; 100 % more would not fit on a small node."""
        return self.mem_mb * (attempt + 1) // 2

    def minutes_of(self, attempt: int) -> int:
        """100 % more in every further attempt."""
        return self.minutes * attempt


@dataclass(frozen=True)
class _Need:
    """Resources of a stage beyond those of every job."""

    params: int = 0
    """Parameters that are trained, or held as many times as training would."""
    host_bytes: float = 0
    """On any device."""
    device_bytes: float = 0
    """On the CPU in the host's memory, on a GPU in the GPU's."""
    flops: float = 0
    seconds: float = 0


def preparation(corpus: Corpus) -> Request:
    """Of preparing a corpus: text, numbers and masks of all tokens; half an hour for a download."""
    numbers = max(sum(corpus.tokens or ()), corpus.size)
    return Request(_rounded(BASE_MB + MARGIN * 16 * numbers / MIB), 2 * START_MINUTES + math.ceil(numbers / 2e6))


def task_memory(size: int) -> int:
    """MiB of host memory for preparing the task of a pretrained network from texts of this many bytes."""
    return max(TASK_MB, _rounded(BASE_MB + size * TOKEN_BYTES / TEXT_BYTES / MIB))


def request(stage: str, config: Experiment, variant: str = "baseline") -> Request:
    """Of one job.  stage: the rule.  variant: of what; stages of a whole experiment need none."""
    job = _Job(config, corpus_of(config.data), parse_variant(variant))
    need = STAGES[stage](job) if stage in STAGES else _Need()
    gpu = config.device != "cpu" and stage not in ON_CPU
    memory = need.params * (STORED_BYTES if gpu else TRAINED_BYTES) + need.host_bytes
    memory += 0 if gpu else need.device_bytes
    compiled = "compiled" in (config.workload.execution, *config.profile_blocks.executions)
    always = BASE_MB + (CUDA_MB if gpu else 0) + (COMPILE_MB if compiled else 0)
    rate = GPU_FLOPS if gpu else CPU_FLOPS * config.threads
    seconds = 2 * MARGIN * (need.flops / rate + need.seconds)
    return Request(_rounded(always + MARGIN * memory / MIB), START_MINUTES + math.ceil(seconds / 60))


def _rounded(megabytes: float) -> int:
    return 100 * math.ceil(megabytes / 100)


@dataclass(frozen=True)
class _Job:
    """The sizes that the needs of stages are made of."""

    config: Experiment
    corpus: Corpus
    variant: Variant

    @cached_property
    def space(self) -> tuple[BlockSpec, ...]:
        """Options of every position of a network that is searched or sampled."""
        names = getattr(self.config.search_methods, self.variant.method, self.config.design_space)
        return tuple(self.config.model.option(name) for name in names)

    @cached_property
    def baseline(self) -> tuple[BlockSpec, ...]:
        return self.network(self.config.patterns.baseline)

    def network(self, pattern: str) -> tuple[BlockSpec, ...]:
        return self.config.model.architecture(self.corpus.vocab_size, pattern).blocks

    def most(self, count: Callable[[BlockSpec], float]) -> float:
        """Sum of a count over the blocks of the variant's network, or the largest sum of any that it may be."""
        if self.variant.pattern:
            return sum(map(count, self.network(self.config.patterns.of(self.variant.pattern))))
        return len(self.baseline) * max(map(count, self.space))

    def params(self, blocks: Iterable[BlockSpec] | None = None) -> int:
        """Of a network with these blocks, embedding included; by default of the variant's network at most."""
        width = self.config.model.d_model
        counts = self.most(lambda spec: spec.params(width)) if blocks is None else sum(b.params(width) for b in blocks)
        return self.config.model.head.params(self.corpus.vocab_size, width) + counts

    def activations(self, spec: BlockSpec, shape) -> int:
        return spec.activations(self.config.model.d_model, shape.batch, shape.tgt_len, shape.mem_len)

    def step_bytes(self, shape) -> float:
        """Activations and logits of a training step of the variant's network; shape has batch, tgt_len and mem_len."""
        return self.logits_bytes(shape) + 4 * self.most(lambda spec: self.activations(spec, shape))

    def call_bytes(self, shape) -> float:
        """Of an inference call: logits, the activations of one block, and every block's memory before and after."""
        block = max(self.activations(spec, shape) for spec in (*self.space, *self.baseline))
        memory = shape.batch * (shape.mem_len + shape.tgt_len) * self.config.model.d_model
        return self.logits_bytes(shape) + 4 * (block + 4 * memory * len(self.baseline))

    def logits_bytes(self, shape) -> int:
        logits = self.config.model.head.logits_per_row(self.corpus.vocab_size)
        return 4 * min(3 * shape.batch * shape.tgt_len * logits, LOGITS)

    def flops(self, shape, blocks: Iterable[BlockSpec] | None = None) -> float:
        """Forward FLOPs per token, head included; by default of a network as slow as the variant's at most: one with a
        latency target is no slower than the baseline."""

        def count(spec: BlockSpec) -> float:
            return spec.flops(self.config.model.d_model, shape.batch, shape.tgt_len, shape.mem_len, "recompute")

        if blocks is None and self.variant.target:
            blocks = self.baseline
        counts = self.most(count) if blocks is None else sum(map(count, blocks))
        return self.config.model.head.flops(self.corpus.vocab_size, self.config.model.d_model) + counts

    @property
    def text_tokens(self) -> float:
        """Tokens of the validation text, and of the test text, which is about as long."""
        return max(self.corpus.tokens[1:]) if self.corpus.tokens else VALID_SHARE * self.corpus.size

    @property
    def corpus_bytes(self) -> float:
        """Token arrays, which are mapped: what is read of them counts as memory."""
        return 4 * sum(self.corpus.tokens) if self.corpus.tokens else self.corpus.size


def _training(job: _Job, stage: TrainingConfig, forwards: float = 3) -> _Need:
    """A stage that trains the variant's network; a backward pass costs two forward passes."""
    return _Need(
        params=job.params(),
        host_bytes=job.corpus_bytes,
        device_bytes=job.step_bytes(stage),
        flops=forwards * stage.steps * stage.batch * stage.tgt_len * job.flops(stage),
        seconds=stage.steps * PASS_SECONDS,
    )


def _measuring(job: _Job) -> _Need:
    """Stacks of twice profile_blocks.copies of all options with their memories, one kind of workload after the other,
    each of which may take max_seconds for its rounds and some more where costs come out negative."""
    config, profile, work = job.config, job.config.profile_blocks, job.config.workload
    options = {*map(config.model.option, config.design_space), *config.search_methods.options(config.model)}
    memory = 3 * max(calls.batch * calls.mem_len for calls in work.measured) * config.model.d_model
    layouts = 2 if "decode" in work.kinds else 1  # the decode engine has another one
    pool = layouts * 4 * 2 * profile.copies * (job.params(options) + len(options) * memory)
    workloads = len({work.batch, *profile.batches}) * len({work.execution, *profile.executions})
    workloads += len(work.kinds) - 1
    return _Need(
        host_bytes=min(pool, POOL_BYTES),
        device_bytes=max(map(job.call_bytes, work.measured)),
        seconds=4 * workloads * profile.max_seconds,
    )


def _search(job: _Job) -> _Need:
    """A supernet, whose options may share weights.  Its weight steps run one option a position, its architecture steps
    all of them; a teacher runs in both."""
    stage, positions = search_config(job.config.search, job.variant), len(job.baseline)
    stored = [job.space[owner] for owner in set(owners(job.space, stage.weight_sharing))]
    activations = positions * sum(job.activations(spec, stage) for spec in job.space)
    alpha_share = stage.alpha_share * (1 - stage.frozen_share)
    flops = (3 / len(job.space) + 2 * alpha_share) * job.flops(stage, job.space * positions)
    flops += (1 + alpha_share) * job.flops(stage, job.baseline) if stage.distill else 0
    return _Need(
        params=job.params(stored * positions) + (job.params(job.baseline) if stage.needs_parent else 0),
        host_bytes=job.corpus_bytes,
        device_bytes=job.logits_bytes(stage) * (2 if stage.distill else 1) + 4 * activations,
        flops=flops * stage.steps * stage.batch * stage.tgt_len,
        seconds=stage.steps * PASS_SECONDS * (1 + stage.alpha_share * len(job.space)),
    )


def _choose(job: _Job) -> _Need:
    """Scores of options at all positions, proxy trainings of candidates, and their measurements.  keep_<q> trains
    a network per target for a while, and some to the end."""
    how = candidates_config(job.config.candidates, job.variant)
    trained, trainings, measurements = _retrain(job), how.proxy_trainings, how.count * (how.corrections + 1)
    if job.variant.method == "keep":
        keep = job.config.keep
        trainings, measurements = len(keep.targets) * keep.proxy_share + keep.trained, len(keep.targets)
    supernet = _search(job) if needs_supernet(job.config.candidates, job.variant) else _Need()
    scored = how.rounds * len(job.baseline) * len(job.space) * how.tokens if supernet.params else 0
    calls = scored / (job.config.search.batch * job.config.search.tgt_len)
    return _Need(
        params=trained.params,
        host_bytes=trained.host_bytes + READ_BYTES * supernet.params,
        device_bytes=max(
            trained.device_bytes, *map(job.call_bytes, (job.config.search, *job.config.workload.measured))
        ),
        flops=scored * job.flops(job.config.search) + trainings * trained.flops,
        seconds=calls * PASS_SECONDS + trainings * trained.seconds + MEASUREMENT_SECONDS * measurements,
    )


def _teacher(job: _Job) -> _Need:
    """The baseline's logits of all steps, in memory until they are written."""
    stage = job.config.distill
    return _Need(
        params=job.params(job.baseline),
        host_bytes=job.corpus_bytes + 2 * stage.cache_bytes(job.corpus.vocab_size),
        device_bytes=job.call_bytes(stage),
        flops=stage.steps * stage.batch * stage.tgt_len * job.flops(stage, job.baseline),
        seconds=stage.steps * PASS_SECONDS,
    )


def _retrain(job: _Job) -> _Need:
    """Training with its validations.  A student's parent runs beside it, or its logits are in memory."""
    student = not job.variant.scratch
    stage = job.config.distill if student else job.config.retrain
    need = _training(job, stage, forwards=4 if job.variant.is_taught else 3)
    read = (1 + stage.steps / stage.eval_steps) * job.text_tokens
    cached = stage.cache_bytes(job.corpus.vocab_size) if job.variant.is_taught else 0
    return _Need(
        params=need.params + student * job.params(job.baseline),
        host_bytes=need.host_bytes + min(cached, 1e9 * job.config.distill.cache_gb),
        device_bytes=need.device_bytes,
        flops=need.flops + read * job.flops(stage),
        seconds=need.seconds + read / (stage.batch * stage.tgt_len) * PASS_SECONDS,
    )


def _sparsify(job: _Job) -> _Need:
    """Training, with the baseline as the teacher."""
    need = _training(job, job.config.sparsify, forwards=3 if job.variant.from_papers else 4)
    teacher = 0 if job.variant.from_papers else job.params(job.baseline)
    return dataclasses.replace(need, params=need.params + teacher)


def _cluster_experts(job: _Job) -> _Need:
    """Constrained k-means of the neurons of every dense layer.  Of wide layers a network with a latency target has no
    more than fit into the baseline's FLOPs."""
    how, shape = job.config.cluster_experts, job.config.workload
    seconds = pairs = 0.0
    for spec in {spec for spec in (*job.space, *job.baseline) if spec.splits}:
        layers = min(len(job.baseline), job.flops(shape, job.baseline) // job.flops(shape, [spec]))
        pairs = max(pairs, spec.d_inner**2 / how.expert_size)
        seconds = max(seconds, layers * spec.d_inner**2 / how.expert_size * FLOW_SECONDS)
    return _Need(
        params=job.params(),
        host_bytes=FLOW_BYTES * pairs,
        seconds=how.restarts * how.max_iterations * seconds,
    )


def _evaluate(job: _Job) -> _Need:
    """Validation and test text by two protocols, sparsified, and at every threshold; measurements of latency."""
    how = job.config.evaluate
    read = 2 * (3 + len(how.taus)) * job.text_tokens
    return _Need(
        params=job.params() + job.params(job.baseline),
        host_bytes=job.corpus_bytes,
        device_bytes=max(map(job.call_bytes, (how, *job.config.workload.measured))),
        flops=read * job.flops(how),
        seconds=read / (how.batch * how.tgt_len) * PASS_SECONDS + 2 * MEASUREMENT_SECONDS,
    )


STAGES = {
    "profile_blocks": _measuring,
    "check_additivity": _measuring,
    "search": _search,
    "choose": _choose,
    "teacher": _teacher,
    "retrain": _retrain,
    "replace_projections": lambda job: _training(job, job.config.projections),
    "sparsify": _sparsify,
    "cluster_experts": _cluster_experts,
    "train_routers": lambda job: _training(job, job.config.train_routers),
    "evaluate": _evaluate,
    "export": lambda job: _Need(params=job.params()),
}
"""Stages that need more than every job, by rule."""
ON_CPU = ("estimate_cost", "pattern", "cluster_experts", "export", "compare", "repeatability", "pareto")
"""Stages that always run on the CPU."""
