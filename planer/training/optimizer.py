"""From configuration to optimiser."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from planer.config import OptimizerConfig
from planer.training.lamb import Lamb


def make_optimizer(
    params: Iterable[torch.nn.Parameter], config: OptimizerConfig, decay_vectors: bool = True
) -> torch.optim.Optimizer:
    """LAMB or AdamW over the parameters that require a gradient.

    decay_vectors: whether weight decay applies to parameters with one axis too, which are biases and norms.
    The learning rate in it is the peak; the training loop sets each step's own.
    """
    params = [param for param in params if param.requires_grad]
    if not decay_vectors:
        vectors = [param for param in params if param.ndim < 2]
        matrices = [param for param in params if param.ndim >= 2]
        params = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    shared = {"lr": config.lr, "betas": config.betas, "eps": config.eps, "weight_decay": config.weight_decay}
    if config.name == "lamb":
        return Lamb(params, **shared)
    return torch.optim.AdamW(params, fused=True, **shared)
