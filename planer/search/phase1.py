"""Phase 1 of PLANER: weights and architecture weights of a supernet, trained in turn.

PLANER (arXiv 2208.14580), section 3 and appendix.  An epoch is ``epoch_steps`` weight steps on consecutive segments
with hard sampling, then ``alpha_share`` as many architecture steps with soft sampling, on a stretch of the training
text that starts at a random place (consecutive, because the memory must be the true left context).  Epochs that begin
in the first ``frozen_share`` of the weight steps have no architecture steps, and sample all options equally often; from
then on the temperature falls by ``anneal`` after every epoch, down to a floor.  Architecture steps minimise
cross-entropy plus the latency loss (latency_loss.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from planer.architecture import Skip
from planer.config import SearchConfig, derive_seed
from planer.data.stream import StreamBatches
from planer.files import UserError
from planer.latency.table import LatencyTable, identity
from planer.model import initialise
from planer.runtime import autocast, resolve_device, resolve_dtype, seed_everything
from planer.search.arms import config_of, stop_share
from planer.search.constraints import limits_of
from planer.search.latency_loss import LatencyLoss
from planer.search.supernet import Supernet, build_supernet
from planer.training.checkpoint import Checkpoint
from planer.training.loop import Objective, Turn, fit
from planer.training.optimizer import make_optimizer
from planer.variant import Variant


class Phase1(Objective):
    """The two-level objective, for the training loop."""

    name = "search"

    def __init__(
        self,
        supernet: Supernet,
        latency: LatencyLoss,
        train: np.ndarray,
        config: SearchConfig,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
        stop_share: float = 0.0,
    ):
        """supernet and latency are on the device already; train is the 1-D token array; dtype is of matrix products.

        stop_share: the search ends when the argmax has not changed for this share of its architecture phase; 0: never.
        Raises UserError when the plan has no architecture step.
        """
        self.model = supernet
        self.stop_share = stop_share
        self.latency, self.config, self.seed, self.device, self.dtype = latency, config, seed, device, dtype
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
        """Cross-entropy of one segment, plus the latency term in architecture steps."""
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
            hidden, self.memory[turn] = self.model(tokens, self.memory[turn], mem_len=self.config.mem_len)
            cross_entropy = self.model.nll(hidden, targets).mean()
        if turn == "weights":
            self.expert_tokens = self.expert_tokens + self.model.expert_loads()
        self.tokens += targets.numel()
        metrics[f"ce_{turn}"] = cross_entropy.detach()
        for name, value in metrics.items():
            total, count = self.sums.get(name, (0.0, 0))
            self.sums[name] = (total + value.double(), count + 1)
        return cross_entropy + penalty, metrics

    def _choices(self, epoch: int) -> Tensor:
        """Options of the epoch's weight steps [steps, P], drawn at its start: alpha does not change in between."""
        if self.choices is None:
            sample = self.model.sample_fair if epoch < self.frozen_epochs else self.model.sample_hard
            self.choices = sample(self._weight_steps(epoch), self.generator)
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
        skips = [number for number, spec in enumerate(self.model.specs) if isinstance(spec, Skip)]
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
        return row

    def state(self) -> tuple[dict[str, Tensor], dict]:
        """Memories, the sampling stream, and what the current epoch has drawn and summed up."""
        tensors = {"sampling": self.generator.get_state()}
        if self.choices is not None:
            tensors["choices"] = self.choices
        for turn, memory in self.memory.items():
            for position, tensor in enumerate(memory or []):
                tensors[f"memory/{turn}/{position}"] = tensor
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
        self.sums = {name: (tensors[f"sum/{name}"].to(self.device), n) for name, n in values["counts"].items()}
        self.latency.multiplier = tensors["multiplier"].to(self.device)
        self.expert_tokens = tensors["expert_tokens"].to(self.device) if "expert_tokens" in tensors else 0
        self.trajectory = values["trajectory"]

    def trajectory_table(self) -> pd.DataFrame:
        """One row per epoch: the numbers of its row in the history, alpha at its end, how many of its weight steps
        ran each option (``updates``), both nested lists [position][option], and how many tokens trained each expert
        (``expert_tokens`` [position][expert]).  Frozen epochs have no ce_alpha,
        latency_loss, beta and beta_on.
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
) -> tuple[Supernet, pd.DataFrame, dict]:
    """Train the supernet of a variant, towards its latency target if it has one.

    config has the sections device, dtype, model, patterns, design_space, arms, workload and search; train is the token
    array.  Returns the supernet, the trajectory (one row per epoch) and the numbers of metrics.json.  Raises UserError
    before any training when no network of the design space meets the target, or when the table was measured on another
    device or workload.
    """
    config, target = config_of(config, variant), variant.target or 1.0
    device = resolve_device(config.device)
    dtype = resolve_dtype(config.dtype, device)
    table.check(identity(device, dtype, config.workload, config.model, vocab_size))
    baseline = config.model.architecture(vocab_size, config.patterns.baseline)
    attention = config.workload.attention
    option_ms = [table.lookup(name, attention) for name in config.design_space]
    stem_ms, baseline_ms = table.lookup("stem", attention), table.estimate(baseline, attention)
    limits_of(config, baseline, table, target)[0].require_reachable(len(baseline.blocks))
    supernet = build_supernet(config, vocab_size)
    initialise(supernet, torch.Generator().manual_seed(derive_seed(seed, "initialisation")))
    nn.init.zeros_(supernet.alpha)
    seed_everything(derive_seed(seed, "dropout"))
    pressure = (config.search.latency_loss, config.search.latency_weight)
    latency = LatencyLoss(option_ms, stem_ms, baseline_ms, target, *pressure, device)
    stop = stop_share(variant)
    phase1 = Phase1(supernet.to(device).train(), latency, train, config.search, seed, device, dtype, stop)
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
