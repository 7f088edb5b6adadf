"""Phase 1 of PLANER: weights and architecture weights of a supernet, trained in turn.

PLANER (arXiv 2208.14580), section 3 and appendix.  An epoch is ``epoch_steps`` weight steps on consecutive segments
with hard sampling, then ``alpha_share`` as many architecture steps with soft sampling, on a stretch of the training
text that starts at a random place (consecutive, because the memory must be the true left context).  Epochs that begin
in the first ``frozen_share`` of the weight steps have no architecture steps, and sample all options equally often; from
then on the temperature falls by ``anneal`` after every epoch, down to a floor.

    Loss = (1 - w) CE + w KL(parent || supernet),  in architecture steps plus the latency loss (latency_loss.py)

The parent is the trained baseline.  w = 0 is the paper's search.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from planer.config import SearchConfig, derive_seed
from planer.config.variant import Variant
from planer.data.stream import StreamBatches
from planer.errors import UserError
from planer.latency.table import LatencyTable, identity
from planer.models import LanguageModel, initialise
from planer.runtime import autocast, resolve_device, resolve_dtype, seed_everything
from planer.search.constraints import limits_of
from planer.search.latency_loss import LatencyLoss
from planer.search.methods import config_of, stop_share
from planer.search.supernet import Supernet, build_supernet
from planer.search.supernet_start import start_supernet
from planer.specs import EMBEDDING_AND_HEAD
from planer.training.checkpoint import Checkpoint
from planer.training.distillation import taught_score
from planer.training.loop import Objective, Turn, fit
from planer.training.optimizer import make_optimizer
from planer.training.parent_start import Parent
from planer.training.teacher import LiveTeacher


class Phase1(Objective):
    """The two-level objective, for the training loop."""

    name = "search"

    def __init__(
        self,
        supernet: Supernet,
        latency: LatencyLoss,
        train: np.ndarray,
        config: SearchConfig,
        *,
        seed: int,
        dtype: torch.dtype = torch.float32,
        stop_share: float = 0.0,
        parent: LanguageModel | None = None,
    ):
        """supernet, latency and parent are on one device; train is the 1-D token array; dtype is of matrix products.

        stop_share: the search ends when the argmax has not changed for this share of its architecture phase; 0: never.
        parent: the teacher, needed where config.distill is above 0.  Raises UserError when the plan has no architecture
        step.
        """
        self.model, self.device = supernet, supernet.alpha.device
        self.stop_share = stop_share
        self.latency, self.config, self.seed, self.dtype = latency, config, seed, dtype
        turns = ("weights", "alpha") if config.distill else ()
        self.teachers = {turn: LiveTeacher(parent, config.mem_len) for turn in turns}
        """Weight steps and architecture steps read different segments, so each has a memory of its own."""
        self.batches = StreamBatches(train, config.batch, config.tgt_len)
        self.epoch_steps = config.epoch_steps or self.batches.segments_per_epoch
        self.epochs = math.ceil(config.steps / self.epoch_steps)
        self.frozen_epochs = math.ceil(config.frozen_share * config.steps / self.epoch_steps)
        self.plan = self._plan()
        self.total_steps = len(self.plan)
        self.weights = supernet.weights()
        weight, alpha, alpha_steps = config.optimizer, config.alpha_optimizer, self.total_steps - config.steps
        if not alpha_steps:
            raise UserError(
                f"search: none of {self.epochs} epochs of {self.epoch_steps} weight steps trains the architecture "
                f"weights (alpha_share {config.alpha_share:g}, frozen_share {config.frozen_share:g}); change "
                "search.epoch_steps, or raise search.alpha_share or search.steps"
            )
        self.turns = {
            "weights": Turn(make_optimizer(self.weights, weight), weight, config.steps),
            "alpha": Turn(make_optimizer([supernet.alpha], alpha), alpha, alpha_steps),
        }
        self.generator = torch.Generator().manual_seed(derive_seed(seed, "sampling"))
        self.choices: Tensor | None = None  # of the current epoch's weight steps, [steps, P] on the CPU
        self.memory: dict[str, list | None] = {"weights": None, "alpha": None}
        self.sums: dict[str, tuple[Tensor, int]] = {}  # of the current epoch: metric -> (sum, count)
        self.expert_tokens: Tensor | int = 0  # of the current epoch: [P, E], tokens that trained each expert
        self.trajectory: list[dict] = []

    def _plan(self) -> list[tuple[str, int, int]]:
        """(turn, epoch, segment) of every step."""
        plan = []
        for epoch in range(self.epochs):
            first, count = epoch * self.epoch_steps, self._weight_steps(epoch)
            plan += [("weights", epoch, first + i) for i in range(count)]
            if epoch >= self.frozen_epochs:
                start = derive_seed(self.seed, "alpha sample", epoch) % self.batches.segments_per_epoch
                plan += [("alpha", epoch, start + i) for i in range(round(self.config.alpha_share * count))]
        return plan

    def _weight_steps(self, epoch: int) -> int:
        return min(self.epoch_steps, self.config.steps - epoch * self.epoch_steps)

    def temperature(self, epoch: int) -> float:
        """T0 until the end of the first unfrozen epoch, then annealed down to the floor."""
        annealed = self.config.temperature * self.config.anneal ** max(0, epoch - self.frozen_epochs)
        return max(annealed, self.config.temperature_floor)

    @property
    def converged(self) -> bool:
        """Whether the argmax has stayed the same for stop_share of the epochs that train the architecture."""
        steady = math.ceil(self.stop_share * (self.epochs - self.frozen_epochs))
        unfrozen = self.trajectory[self.frozen_epochs :]
        return 0 < steady <= len(unfrozen) and not any(row["flips"] for row in unfrozen[-steady:])

    def turn(self, step: int) -> str:
        """Which parameters this step trains."""
        return self.plan[step][0]

    def loss(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy and divergence of one segment, plus the latency term in architecture steps."""
        turn, epoch, segment = self.plan[step]
        for parameter in self.weights:  # spares an architecture step the gradients of all options' weights
            parameter.requires_grad_(turn == "weights")
        penalty, metrics = 0.0, {}
        if turn == "weights":
            self.model.choose(self._choices(epoch)[segment - epoch * self.epoch_steps].tolist())
        else:
            mixture = self.model.sample_soft(self.temperature(epoch), self.generator)
            penalty, ratio, beta = self.latency(mixture)
            metrics = {"latency_loss": ratio.detach(), "beta": beta, "beta_on": (beta > 0).float()}
        tokens, targets = (part.to(self.device, non_blocking=True) for part in self.batches.batch_at(segment))
        with autocast(self.device, self.dtype):
            score = self._score(step, tokens, targets)
            scores, self.memory[turn] = self.model(tokens, self.memory[turn], mem_len=self.config.mem_len, score=score)
            loss, losses = self._prediction_loss(scores)
        if turn == "weights":
            self.expert_tokens = self.expert_tokens + self.model.expert_loads()
        self.tokens += targets.numel()
        metrics |= {f"{name}_{turn}": value.detach() for name, value in losses.items()}
        for name, value in metrics.items():
            total, count = self.sums.get(name, (0.0, 0))
            self.sums[name] = (total + value.double(), count + 1)
        return loss + penalty, metrics

    def _score(self, step: int, tokens: Tensor, targets: Tensor) -> Callable[[Tensor], Tensor]:
        """What the forward pass makes of the hidden states."""
        teacher = self.teachers.get(self.turn(step))
        if teacher is None:
            return partial(self.model.nll, targets=targets)
        return taught_score(self.model, teacher, 1.0, step, tokens, targets)

    def _prediction_loss(self, scores: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss without the latency term, and its parts: ``ce`` and, with a teacher, ``kl``, in nats per token."""
        weight = self.config.distill
        if not self.teachers:
            cross_entropy = scores.mean()
            return cross_entropy, {"ce": cross_entropy}
        cross_entropy, divergence = scores.mean(dim=1)
        return (1 - weight) * cross_entropy + weight * divergence, {"ce": cross_entropy, "kl": divergence}

    def _choices(self, epoch: int) -> Tensor:
        """Options of the epoch's weight steps [steps, P], drawn at its start: alpha does not change in between."""
        if self.choices is None:
            steps, fair = self._weight_steps(epoch), self.config.sampling == "fair"
            if fair and epoch < self.frozen_epochs:
                self.choices = self.model.sample_fair(steps, self.generator)
            else:
                self.choices = self.model.sample_hard(steps, self.generator, fair)
        return self.choices

    def end_of_step(self, step: int) -> dict | None:
        """At the end of an epoch, add a row to the trajectory."""
        epoch = self.plan[step][1]
        if step + 1 < self.total_steps and self.plan[step + 1][1] == epoch:
            return None
        alpha = self.model.alpha.detach()
        probability = alpha.softmax(-1)
        options = alpha.shape[1]
        before = torch.tensor(self.trajectory[-1]["alpha"]) if self.trajectory else torch.zeros(alpha.shape)
        skips = [number for number, spec in enumerate(self.model.specs) if spec.identity]
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
        self.memory["alpha"] = None  # the next stretch for alpha is another text
        if self.teachers:
            self.teachers["alpha"].reset()
        return row

    def state(self) -> tuple[dict[str, Tensor], dict]:
        """Memories of supernet and teachers, the sampling stream, and the current epoch's options and sums."""
        tensors = {"sampling": self.generator.get_state()}
        if self.choices is not None:
            tensors["choices"] = self.choices
        for turn, memory in self.memory.items():
            for position, tensor in enumerate(memory or []):
                tensors[f"memory/{turn}/{position}"] = tensor
        for turn, teacher in self.teachers.items():
            tensors |= {f"{turn}/{name}": tensor for name, tensor in teacher.state().items()}
        for name, (total, _) in self.sums.items():
            tensors[f"sum/{name}"] = total
        tensors["multiplier"] = self.latency.multiplier
        if torch.is_tensor(self.expert_tokens):
            tensors["expert_tokens"] = self.expert_tokens
        counts = {name: count for name, (_, count) in self.sums.items()}
        return tensors, {"counts": counts, "trajectory": self.trajectory}

    def restore(self, tensors: dict[str, Tensor], values: dict) -> None:
        """Inverse of state."""
        self.generator.set_state(tensors["sampling"])
        self.choices = tensors.get("choices")
        for turn in self.memory:
            names = [f"memory/{turn}/{position}" for position in range(len(self.model.blocks))]
            present = names[0] in tensors
            self.memory[turn] = [tensors[name].to(self.device) for name in names] if present else None
        for turn, teacher in self.teachers.items():
            teacher.restore({name.removeprefix(f"{turn}/"): tensor for name, tensor in tensors.items()})
        self.sums = {name: (tensors[f"sum/{name}"].to(self.device), n) for name, n in values["counts"].items()}
        self.latency.multiplier = tensors["multiplier"].to(self.device)
        self.expert_tokens = tensors["expert_tokens"].to(self.device) if "expert_tokens" in tensors else 0
        self.trajectory = values["trajectory"]

    def trajectory_table(self) -> pd.DataFrame:
        """One row per epoch: the numbers of its row in the history, alpha at its end, how many of its weight steps
        ran each option (``updates``), both nested lists [position][option], and how many tokens trained each expert
        (``expert_tokens`` [position][expert], all mixtures of a position together).  Frozen epochs have no
        ce_alpha, kl_alpha, latency_loss, beta and beta_on; without a teacher there are no kl_weights and kl_alpha.
        """
        return pd.DataFrame(self.trajectory)


def search(
    config: SimpleNamespace,
    variant: Variant,
    vocab_size: int,
    table: LatencyTable,
    train: np.ndarray,
    *,
    seed: int,
    checkpoint: Checkpoint,
    on_row: Callable[[dict], None],
    parent: LanguageModel | None = None,
) -> tuple[Supernet, pd.DataFrame, dict]:
    """Train the supernet of a variant, towards its latency target if it has one.

    config has the sections device, dtype, model, patterns, design_space, workload and search; train is the token
    array; parent is the trained baseline, needed unless the search neither starts from it nor learns from it.  Returns
    the supernet, the trajectory (one row per epoch) and the numbers of metrics.json.  Raises UserError before any
    training when no network of the design space meets the target, or when the table was measured on another device or
    workload.
    """
    config, target = config_of(config, variant), variant.target or 1.0
    if config.search.needs_parent and parent is None:
        raise ValueError("this search starts from the trained baseline or learns from it: pass it as parent")
    device = resolve_device(config.device)
    dtype = resolve_dtype(config.dtype, device)
    table.check(identity(device, dtype, config.workload, config.model, vocab_size))
    latency = _latency_loss(config, target, vocab_size, table, device)
    parent = parent and parent.to(device)
    supernet = _started(config, vocab_size, train, seed, device, parent)
    seed_everything(derive_seed(seed, "dropout"))
    options = {"seed": seed, "dtype": dtype, "stop_share": stop_share(variant), "parent": parent}
    phase1 = Phase1(supernet.train(), latency, train, config.search, **options)
    fit(
        phase1,
        log_steps=config.search.log_steps,
        checkpoint_steps=config.search.checkpoint_steps,
        checkpoint=checkpoint,
        on_row=on_row,
    )
    last = {name: value for name, value in phase1.trajectory[-1].items() if not isinstance(value, list)}
    size = sum(parameter.numel() for parameter in supernet.parameters())
    return (
        supernet,
        phase1.trajectory_table(),
        {**last, **phase1.speed, "supernet_params": size, "target": variant.target},
    )


def _latency_loss(
    config: SimpleNamespace, target: float, vocab_size: int, table: LatencyTable, device: torch.device
) -> LatencyLoss:
    """Raises UserError when no network of the design space meets the target."""
    baseline, attention = config.model.architecture(vocab_size, config.patterns.baseline), config.workload.attention
    option_ms = [table.lookup(name, attention) for name in config.design_space]
    fixed_ms, baseline_ms = table.lookup(EMBEDDING_AND_HEAD, attention), table.estimate(baseline, attention)
    limits_of(config, baseline, table, target)[0].require_reachable(len(baseline.blocks))
    pressure = (config.search.latency_loss, config.search.latency_weight)
    return LatencyLoss(option_ms, fixed_ms, baseline_ms, target, *pressure, device)


def _started(
    config: SimpleNamespace,
    vocab_size: int,
    train: np.ndarray,
    seed: int,
    device: torch.device,
    parent: LanguageModel | None,
) -> Supernet:
    """A supernet with the weights that training starts from."""
    supernet = build_supernet(config, vocab_size)
    initialise(supernet, torch.Generator().manual_seed(derive_seed(seed, "initialisation")))
    nn.init.zeros_(supernet.alpha)
    supernet = supernet.to(device)
    if config.search.start == "parent":
        start_supernet(supernet, Parent(parent, train, config.search))
    return supernet
