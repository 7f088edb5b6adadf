"""From configuration to optimiser."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from planer.config import OptimizerConfig
from planer.training.lamb import Lamb


def make_optimizer(params: Iterable[torch.nn.Parameter], config: OptimizerConfig) -> torch.optim.Optimizer:
    """LAMB or AdamW over the parameters that require a gradient, all in one group: decay applies to every one.

    The learning rate in it is the peak; the training loop sets each step's own.
    """
    params = [param for param in params if param.requires_grad]
    shared = {"lr": config.lr, "betas": config.betas, "eps": config.eps, "weight_decay": config.weight_decay}
    if config.name == "lamb":
        return Lamb(params, **shared)
    return torch.optim.AdamW(params, fused=True, **shared)
