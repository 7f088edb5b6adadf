"""The learning rate of every step, in closed form."""

from __future__ import annotations

import math

from planer.config import OptimizerConfig


def learning_rate(step: int, config: OptimizerConfig, total_steps: int) -> float:
    """Learning rate of the optimiser's step 1 .. total_steps: linear warm-up, then a cosine down to lr_min.

        step <= W:  lr * step / W
        step >  W:  lr_min + (lr - lr_min) * (1 + cos(pi * (step - W) / (total_steps - W))) / 2

    The peak is reached at step W = warmup_steps and lr_min at the last step.  A warm-up that is as long as training or
    longer never reaches the cosine.  NVIDIA's schedule lags by one step and runs its very first one at the peak; both
    are accidents of its scheduler, and not repeated here.
    """
    if not 1 <= step <= total_steps:
        raise ValueError(f"step {step} is outside 1 to {total_steps}")
    warmup = config.warmup_steps
    if step <= warmup:
        return config.lr * step / warmup
    share = (step - warmup) / (total_steps - warmup)
    return config.lr_min + (config.lr - config.lr_min) * (1 + math.cos(math.pi * share)) / 2
