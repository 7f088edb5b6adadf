"""Phase 1 of PLANER: weights and architecture weights of a supernet, trained alternately.

PLANER (arXiv 2208.14580), section 3 and appendix.  An epoch is ``epoch_steps`` weight steps on consecutive segments
with hard sampling, then ``alpha_share`` as many architecture steps with soft sampling, on a stretch of the training
text that starts at a random place (consecutive, because the memory must be the true left context).  Epochs that begin
in the first ``frozen_share`` of the weight steps have no architecture steps, and sample all options equally often; from
then on the temperature falls by ``anneal`` after every epoch, down to a floor.

    Loss = (1 - w) CE + w KL(parent || supernet),  in architecture steps plus the latency loss (latency_loss.py)

The parent is the trained baseline.  w = 0 is the paper's search.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from planer.blocks.block import Wants
from planer.config import SearchConfig
from planer.config.variant import Variant
from planer.data.texts import Texts
from planer.latency.table import LatencyTable, identity
from planer.models import LanguageModel, initialise
from planer.runtime import Runtime
from planer.search.constraints import limits_of
from planer.search.latency_loss import LatencyLoss
from planer.search.methods import config_of, stop_share
from planer.search.supernet import Supernet, build_supernet
from planer.search.supernet_start import start_supernet
from planer.specs import EMBEDDING_AND_HEAD
from planer.tasks.causal_lm import Batch, CausalLM
from planer.tasks.task import Metrics, Result, RowScore
from planer.training.distillation import Distillation
from planer.training.loop import Record, StepGroup, fit
from planer.training.optimizer import make_optimizer
from planer.training.parent_start import Parent
from planer.training.teacher import LiveTeacher
from planer.training.terms import Term

GROUPS = ("weights", "alpha")
"""The optimizer step groups: weights of the supernet, and architecture weights."""
COLUMNS = (
    *("epoch", "temperature", "expected_ms", "argmax_ms", "budget_ms", "entropy", "flips", "skip_share"),
    *("ce_weights", "kl_weights", "alpha", "updates", "expert_tokens"),
    *("latency_loss", "beta", "beta_on", "ce_alpha", "kl_alpha"),
)
"""Of the trajectory, as far as the search has them."""


class SearchTask(CausalLM):
    """Which parameters each step trains, on which text and through which options of the supernet.

    Consecutive weight steps read consecutive segments, and so do the architecture steps of one epoch.
    """

    def __init__(
        self,
        supernet: Supernet,
        latency: LatencyLoss,
        texts: Texts,
        config: SearchConfig,
        runtime: Runtime,
        stop_share: float = 0.0,
    ):
        """supernet and latency are on the runtime's device.

        stop_share: the search ends when the argmax has not changed for this share of its architecture phase; 0: never.
        Raises UserError when the plan has no architecture step.
        """
        super().__init__(texts, config, runtime, name="search")
        self.supernet, self.latency, self.stop_share = supernet, latency, stop_share
        self.epochs = config.epochs(self.batches.segments_per_epoch)
        self.epochs.check()
        self.plan = self._plan()
        self.weights = supernet.weights()
        self.generator = runtime.generator("sampling")
        self.choices: Tensor | None = None  # of the current epoch's weight steps, [steps, P] on the CPU
        self.mixture: Tensor | None = None  # of the current architecture step, [P, N]
        self.sums: dict[str, tuple[Tensor, int]] = {}  # of the current epoch: metric -> (sum, count)
        self.expert_tokens: Tensor | int = 0  # of the current epoch: [P, E], tokens that trained each expert
        self.trajectory: list[dict] = []
        self._group = "weights"  # of the current step

    def _plan(self) -> list[tuple[str, int, int]]:
        """(group, epoch, segment) of every step."""
        plan = []
        for epoch in range(self.epochs.count):
            first = epoch * self.epochs.length
            plan += [("weights", epoch, first + i) for i in range(self.epochs.weight_steps(epoch))]
            if count := self.epochs.alpha_steps(epoch):
                start = self.runtime.derive("alpha sample", epoch) % self.batches.segments_per_epoch
                plan += [("alpha", epoch, start + i) for i in range(count)]
        return plan

    def optimizers(self) -> dict[str, StepGroup]:
        """Both, with as many steps as the plan gives them."""
        weight, alpha = self.config.optimizer, self.config.alpha_optimizer
        return {
            "weights": StepGroup(make_optimizer(self.weights, weight), weight, self.config.steps),
            "alpha": StepGroup(make_optimizer([self.supernet.alpha], alpha), alpha, len(self.plan) - self.config.steps),
        }

    def terms(self, parent: LanguageModel | None) -> list[Term]:
        """Terms beside the cross-entropy: the teacher where config.distill is above 0, and the latency loss.

        Weight steps and architecture steps read different segments, so the teacher has a memory for each.
        """
        weight = self.config.distill
        teaching = {group: LiveTeacher(parent, self.config.mem_len) for group in GROUPS} if weight else {}
        terms = [Distillation(teacher, weight, 1.0, group, f"kl_{group}") for group, teacher in teaching.items()]
        return [*terms, LatencyTerm(self)]

    def temperature(self, epoch: int) -> float:
        """T0 until the end of the first unfrozen epoch, then annealed down to the floor."""
        annealed = self.config.temperature * self.config.anneal ** max(0, epoch - self.epochs.frozen)
        return max(annealed, self.config.temperature_floor)

    @property
    def converged(self) -> bool:
        """Whether the argmax has stayed the same for stop_share of the epochs that train the architecture."""
        steady = math.ceil(self.stop_share * (self.epochs.count - self.epochs.frozen))
        unfrozen = self.trajectory[self.epochs.frozen :]
        return 0 < steady <= len(unfrozen) and not any(row["flips"] for row in unfrozen[-steady:])

    def group(self, step: int) -> str:
        """Which parameters this step trains."""
        return self.plan[step][0]

    def batch(self, step: int) -> Batch:
        """The segment that the plan names; the first one of a stretch for the architecture is another text.  Sets the
        options that run, and which parameters get gradients."""
        group, epoch, segment = self.plan[step]
        for parameter in self.weights:  # spares an architecture step the gradients of all options' weights
            parameter.requires_grad_(group == "weights")
        if group == "weights":
            self.supernet.choose(self._choices(epoch)[segment - epoch * self.epochs.length].tolist())
        else:
            self.mixture = self.supernet.sample_soft(self.temperature(epoch), self.generator)
        self._group = group
        return super().batch(segment)._replace(fresh=group == "alpha" and self.group(step - 1) == "weights")

    def loss(
        self, model: Supernet, batch: Batch, state: list | None, wants: Wants = (), scores: Sequence[RowScore] = ()
    ) -> Result:
        """Cross-entropy of one segment, ``ce_<group>`` in the history."""
        result = super().loss(model, batch, state, (*wants, "load"), scores)
        if self._group == "weights":
            self.expert_tokens = self.expert_tokens + model.expert_loads(result.aux)
        return dataclasses.replace(result, metrics={f"ce_{self._group}": result.loss})

    def _choices(self, epoch: int) -> Tensor:
        """Options of the epoch's weight steps [steps, P], sampled at its start: alpha does not change in between."""
        if self.choices is None:
            steps, fair = self.epochs.weight_steps(epoch), self.config.sampling == "fair"
            if fair and epoch < self.epochs.frozen:
                self.choices = self.supernet.sample_fair(steps, self.generator)
            else:
                self.choices = self.supernet.sample_hard(steps, self.generator, fair)
        return self.choices

    def end_of_step(self, model: Supernet, step: int, metrics: Metrics) -> dict | None:
        """At the end of an epoch, add a row to the trajectory."""
        for name, value in metrics.items():
            total, count = self.sums.get(name, (0.0, 0))
            self.sums[name] = (total + value.detach().double(), count + 1)
        epoch = self.plan[step][1]
        if step + 1 < len(self.plan) and self.plan[step + 1][1] == epoch:
            return None
        alpha = self.supernet.alpha.detach()
        probability = alpha.softmax(-1)
        options = alpha.shape[1]
        before = torch.tensor(self.trajectory[-1]["alpha"]) if self.trajectory else torch.zeros(alpha.shape)
        skips = [number for number, spec in enumerate(self.supernet.specs) if spec.identity]
        row = {
            "epoch": epoch,
            "temperature": self.temperature(epoch),
            "expected_ms": float(self.latency.expected_ms(probability)),
            "argmax_ms": float(self.latency.expected_ms(F.one_hot(alpha.argmax(-1), options))),
            "budget_ms": self.latency.budget_ms,
            "entropy": float(torch.special.entr(probability).sum(-1).mean()),
            "flips": int((before.argmax(-1) != alpha.argmax(-1).cpu()).sum()),
            "skip_share": float(probability[:, skips].sum(-1).mean()),
            **{name: float(total) / count for name, (total, count) in self.sums.items()},
        }
        updates = F.one_hot(self.choices, options).sum(0)
        counts = {"updates": updates.tolist(), "expert_tokens": self.expert_tokens.tolist()}
        self.trajectory.append(row | {"alpha": alpha.tolist()} | counts)
        self.sums, self.expert_tokens, self.choices = {}, 0, None
        return row

    def state(self) -> tuple[dict[str, Tensor], dict]:
        """The sampling stream, and the current epoch's options and sums."""
        tensors = {"sampling": self.generator.get_state()}
        if self.choices is not None:
            tensors["choices"] = self.choices
        tensors |= {f"sum/{name}": total for name, (total, _) in self.sums.items()}
        if torch.is_tensor(self.expert_tokens):
            tensors["expert_tokens"] = self.expert_tokens
        counts = {name: count for name, (_, count) in self.sums.items()}
        return tensors, {"counts": counts, "trajectory": self.trajectory}

    def restore(self, tensors: dict[str, Tensor], values: dict) -> None:
        device = self.runtime.device
        self.generator.set_state(tensors["sampling"])
        self.choices = tensors.get("choices")
        self.sums = {name: (tensors[f"sum/{name}"].to(device), n) for name, n in values["counts"].items()}
        self.expert_tokens = tensors["expert_tokens"].to(device) if "expert_tokens" in tensors else 0
        self.trajectory = values["trajectory"]

    def trajectory_table(self) -> pd.DataFrame:
        """One row per epoch: the numbers of its row in the history, alpha at its end, how many of its weight steps
        ran each option (``updates``), both nested lists [position][option], and how many tokens trained each expert
        (``expert_tokens`` [position][expert], all mixtures of a position together).  Frozen epochs have no
        ce_alpha, kl_alpha, latency_loss, beta and beta_on; without a teacher there are no kl_weights and kl_alpha.
        """
        table = pd.DataFrame(self.trajectory)
        return table[[name for name in COLUMNS if name in table]]


class LatencyTerm(Term):
    """The latency loss of the mixture that an architecture step has sampled."""

    group = "alpha"

    def __init__(self, task: SearchTask):
        self._task = task

    def __call__(self, result: Result, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        penalty, ratio, beta = self._task.latency(self._task.mixture)
        return penalty, {"latency_loss": ratio.detach(), "beta": beta, "beta_on": (beta > 0).float()}

    def state(self) -> dict[str, Tensor]:
        """The multiplier of dual ascent."""
        return {"multiplier": self._task.latency.multiplier}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        self._task.latency.multiplier = tensors["multiplier"].to(self._task.runtime.device)


def search(
    config: SimpleNamespace,
    variant: Variant,
    table: LatencyTable,
    texts: Texts,
    runtime: Runtime,
    record: Record,
    parent: LanguageModel | None = None,
) -> tuple[Supernet, pd.DataFrame, dict]:
    """Train the supernet of a variant, towards its latency target if it has one.

    config has the sections model, patterns, design_space, workload and search; texts.train is read; parent is the
    trained baseline, needed unless the search neither starts from it nor learns from it.  Returns the supernet, the
    trajectory (one row per epoch) and the numbers of metrics.json.  Raises UserError before any training when no
    network of the design space meets the target, or when the table was measured on another device or workload.
    """
    config, vocab_size = config_of(config, variant), texts.vocab_size
    if config.search.needs_parent and parent is None:
        raise ValueError("this search starts from the trained baseline or learns from it: pass it as parent")
    table.check(identity(runtime, config.workload, config.model, vocab_size))
    latency = _latency_loss(config, variant.target or 1.0, vocab_size, table, runtime.device)
    parent = parent and parent.to(runtime.device)
    supernet = _started(config, vocab_size, texts.train, runtime, parent)
    runtime.seed_everything("dropout")
    task = SearchTask(supernet, latency, texts, config.search, runtime, stop_share(variant))
    _, speed = fit(supernet.train(), task, task.terms(parent), task.optimizers(), runtime, config.search, record)
    last = {name: value for name, value in task.trajectory[-1].items() if not isinstance(value, list)}
    size = sum(parameter.numel() for parameter in supernet.parameters())
    return supernet, task.trajectory_table(), {**last, **speed, "supernet_params": size, "target": variant.target}


def _latency_loss(
    config: SimpleNamespace, target: float, vocab_size: int, table: LatencyTable, device: torch.device
) -> LatencyLoss:
    """Raises UserError when no network of the design space meets the target."""
    baseline = config.model.architecture(vocab_size, config.patterns.baseline)
    attention = config.workload.target.attention
    option_ms = [table.lookup(name, attention) for name in config.design_space]
    fixed_ms, baseline_ms = table.lookup(EMBEDDING_AND_HEAD, attention), table.estimate(baseline, attention)
    limits_of(config, baseline, table, target)[0].require_reachable(len(baseline.blocks))
    pressure = (config.search.latency_loss, config.search.latency_weight)
    return LatencyLoss(option_ms, fixed_ms, baseline_ms, target, *pressure, device)


def _started(
    config: SimpleNamespace, vocab_size: int, train: np.ndarray, runtime: Runtime, parent: LanguageModel | None
) -> Supernet:
    """A supernet with the weights that training starts from."""
    supernet = build_supernet(config, vocab_size)
    initialise(supernet, runtime.generator("initialisation"))
    nn.init.zeros_(supernet.alpha)
    supernet = supernet.to(runtime.device)
    if config.search.start == "parent":
        start_supernet(supernet, Parent(parent, train, config.search))
    return supernet
