"""The loss term that lowers a supernet's expected latency to its budget, in architecture steps only.

    Lat = Lat_0 + sum_b sum_i P_bi Lat_i        ratio = Lat / (Lat_base * target)

Lat_0 is embedding and head.  ``switch`` is PLANER's (arXiv 2208.14580, section 3): beta * ratio, beta = weight while
ratio > 1 and 0 otherwise.  The hinge weight * max(0, ratio - 1) has the same gradient, on or off.  ``hinge`` is its
smooth version, weight * w * softplus((ratio - 1) / w), whose slope grows gradually.  ``dual`` is dual ascent on the
constraint ratio <= 1: beta * ratio with a multiplier beta that grows by weight * (ratio - 1) after every step, never
below 0.

Letters in shapes: P positions, N options.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

HINGE_WIDTH = 0.05
"""w of the smooth hinge: between 5 % below and 5 % above the budget its slope goes from a quarter to three quarters."""


class LatencyLoss:
    """Expected latency of a mixture over its budget, and the loss from it."""

    def __init__(
        self,
        option_ms: list[float],
        fixed_ms: float,
        baseline_ms: float,
        target: float,
        kind: str,
        weight: float,
        device: torch.device,
    ):
        """Latencies in ms: of the options, of embedding and head, of the baseline.  target: over the baseline's.

        kind: switch, hinge or dual.
        """
        self.option_ms = torch.tensor(option_ms, dtype=torch.float32, device=device)
        self.fixed_ms = fixed_ms
        self.budget_ms = baseline_ms * target
        self.kind, self.weight = kind, weight
        self.multiplier = torch.zeros((), device=device)
        """beta of the dual ascent."""

    def expected_ms(self, mixture: Tensor) -> Tensor:
        """Lat_0 plus the sum over positions and options of P_bi * Lat_i, for a mixture [P, N]."""
        return self.fixed_ms + (mixture * self.option_ms).sum()

    def __call__(self, mixture: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(loss, ratio, beta), for a mixture [P, N]; beta is the slope of the loss over the ratio.

        Under ``dual`` the call also moves the multiplier, so call once a step.
        """
        ratio = self.expected_ms(mixture) / self.budget_ms
        excess = ratio.detach() - 1
        if self.kind == "hinge":
            loss = self.weight * HINGE_WIDTH * F.softplus((ratio - 1) / HINGE_WIDTH)
            return loss, ratio, self.weight * torch.sigmoid(excess / HINGE_WIDTH)
        if self.kind == "dual":
            beta = self.multiplier
            self.multiplier = (beta + self.weight * excess).clamp(min=0)
        else:
            beta = self.weight * (excess > 0).float()
        return beta * ratio, ratio, beta
