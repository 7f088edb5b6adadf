"""A small search of phase 1."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import torch
from toy import MS, VOCAB_SIZE, experiment, latency_table_of_this_machine

from planer.config import SearchConfig
from planer.config.variant import parse_variant
from planer.data.texts import Texts
from planer.models import LanguageModel, initialise
from planer.runtime import Runtime
from planer.search.latency_loss import LatencyLoss
from planer.search.phase1 import SearchTask, search
from planer.search.supernet import Supernet
from planer.training.checkpoint import Checkpoint
from planer.training.loop import Record, fit
from planer.training.loss import StepLoss

SMALL = {"batch": 2, "tgt_len": 8, "mem_len": 12, "steps": 50, "epoch_steps": 10, "log_steps": 5, "checkpoint_steps": 7}
CONFIG = experiment(search=SMALL)
"""5 epochs of 10 weight steps; all but the first also have 2 architecture steps: 58 steps."""
SHORT = experiment(search=SMALL | {"steps": 20})
TOKENS = np.random.default_rng(0).integers(0, 256, 700).astype(np.uint8)
"""Random bytes, 44 segments."""
TEXTS = Texts(VOCAB_SIZE, TOKENS)


def baseline() -> LanguageModel:
    """The parent, with random weights."""
    model = LanguageModel(CONFIG.model.architecture(VOCAB_SIZE, CONFIG.patterns.baseline))
    initialise(model, torch.Generator().manual_seed(3))
    return model


def run(folder, rows=None, config=CONFIG, target=0.5, seed=7, scratch=False):
    """A search.  scratch: without a parent, as in the paper."""
    variant = dataclasses.replace(parse_variant(f"target_{target}"), scratch=scratch)
    record = Record(Checkpoint(folder, "test"), (lambda row: None) if rows is None else rows.append)
    runtime = Runtime(dtype=torch.bfloat16 if config.dtype == "bfloat16" else torch.float32, seed=seed)
    table = dataclasses.replace(latency_table_of_this_machine(config))
    return search(config, variant, table, TEXTS, runtime, record, None if scratch else baseline())


class Parts:
    """The supernet, task, terms, optimizers and loss of a search; the supernet has random weights."""

    def __init__(self, target=0.5, seed=7, kind=SearchTask, stop_share=0.0, **changes):
        self.config: SearchConfig = dataclasses.replace(CONFIG.search, **changes)
        options = tuple(CONFIG.model.option(name) for name in CONFIG.design_space)
        self.supernet = Supernet(CONFIG.model.architecture(VOCAB_SIZE, ()), options, 4, self.config.weight_sharing)
        initialise(self.supernet, torch.Generator().manual_seed(0))
        torch.nn.init.zeros_(self.supernet.alpha)
        torch.manual_seed(0)
        option_ms = [MS[name] for name in CONFIG.design_space]
        pressure = (self.config.latency_loss, self.config.latency_weight)
        latency = LatencyLoss(option_ms, 1.0, 15.0, target, *pressure, torch.device("cpu"))
        self.parent, self.runtime = baseline(), Runtime(seed=seed)
        self.task = kind(self.supernet.train(), latency, TEXTS, self.config, self.runtime, stop_share)
        self.terms, self.optimizers = self.task.terms(self.parent), self.task.optimizers()
        self.loss = StepLoss(self.supernet, self.task, self.terms, self.runtime)

    def set_alpha_rate(self, lr: float) -> None:
        """Set a constant learning rate of the architecture weights."""
        config = dataclasses.replace(CONFIG.search.alpha_optimizer, lr=lr, lr_min=lr)
        self.optimizers["alpha"] = dataclasses.replace(self.optimizers["alpha"], config=config)

    def train(self, folder) -> dict[str, float]:
        """Train to the end and return the training speed."""
        config, record = dataclasses.replace(self.config, checkpoint_steps=1000), Record(Checkpoint(folder, "test"))
        return fit(self.supernet, self.task, self.terms, self.optimizers, self.runtime, config, record)[1]


def weights(supernet: LanguageModel) -> dict[str, list]:
    return {name: tensor.tolist() for name, tensor in supernet.state_dict().items()}


def same(frame: pd.DataFrame, other: pd.DataFrame) -> None:
    """Assert that two tables are bit-identical."""
    pd.testing.assert_frame_equal(frame, other, check_exact=True)
