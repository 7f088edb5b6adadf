"""LAMB as the Transformer-XL baselines are trained with (You et al., arXiv 1904.00962).

The formula is that of ``lamb_kernel`` in NVIDIA's DeepLearningExamples, Transformer-XL/pytorch/lamb.py (JITLamb).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

MAX_WEIGHT_NORM = 10.0
"""Weight norms count at most this much (You et al., section 3, function phi)."""


class Lamb(torch.optim.Optimizer):
    """Adam direction, rescaled for every weight tensor to the size of that tensor.

    For a weight tensor w with gradient g, elementwise and without bias correction::

        m <- beta1 m + (1 - beta1) g        s <- beta2 s + (1 - beta2) g^2
        a  = m / (sqrt(s) + eps) + weight_decay w
        t  = min(||w||, 10) / (||a|| + eps), but 1 where ||w|| = 0 or ||a|| = 0
        w <- w - lr t a

    Everything gets weight decay and a trust ratio t, biases and LayerNorm included.  A parameter whose attribute
    ``stacked`` is true holds one weight tensor per row of its first axis (the experts of a mixture) and gets one t
    per row: a joint norm would give each of E experts 1/sqrt(E) of the update it gets on its own.  Rows of a
    stacked parameter therefore train exactly as separate parameters would.  Parameters without gradient are skipped.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update every parameter that has a gradient.  Device values are never read back."""
        if closure is not None:
            raise ValueError("Lamb takes no closure")
        for group in self.param_groups:
            params = [param for param in group["params"] if param.grad is not None]
            if params:
                self._update(params, group)

    def _update(self, params: list[Tensor], group: dict) -> None:
        beta1, beta2 = group["betas"]
        grads = [param.grad for param in params]
        for param in params:
            if not self.state[param]:
                self.state[param] = {"exp_avg": torch.zeros_like(param), "exp_avg_sq": torch.zeros_like(param)}
        means = [self.state[param]["exp_avg"] for param in params]
        squares = [self.state[param]["exp_avg_sq"] for param in params]

        torch._foreach_lerp_(means, grads, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
        directions = torch._foreach_sqrt(squares)
        torch._foreach_add_(directions, group["eps"])
        directions = torch._foreach_div(means, directions)
        if group["weight_decay"]:
            torch._foreach_add_(directions, params, alpha=group["weight_decay"])

        stacked = [getattr(param, "stacked", False) for param in params]
        weights, directions = _pieces(params, stacked), _pieces(directions, stacked)
        trust = _trust_ratios(weights, directions, group["eps"])
        torch._foreach_addcmul_(weights, directions, trust.unbind(), -group["lr"])


def _pieces(tensors: list[Tensor], stacked: list[bool]) -> list[Tensor]:
    """Views with a norm each: the rows of stacked tensors, and the other tensors whole."""
    return [piece for tensor, rows in zip(tensors, stacked, strict=True) for piece in (tensor if rows else [tensor])]


def _trust_ratios(weights: list[Tensor], directions: list[Tensor], eps: float) -> Tensor:
    """One ratio t per piece [pieces], on the device."""
    weight_norms = torch.stack(torch._foreach_norm(weights))
    direction_norms = torch.stack(torch._foreach_norm(directions))
    ratios = weight_norms.clamp(max=MAX_WEIGHT_NORM) / (direction_norms + eps)
    return torch.where((weight_norms == 0) | (direction_norms == 0), 1.0, ratios)
