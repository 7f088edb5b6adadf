"""Router weights for timing, which decide how many tokens each expert of a mixture gets.

The latency of a mixture of experts depends on the loads of its experts.  A fresh router prefers no expert
(``balanced``, which a search assumes).  A trained router prefers some, in spite of a balancing loss (``skewed``).  At
worst all tokens go to the same experts (``one``).  Only the router's weights differ: all three run the same code.

Letters in shapes: E experts, D model width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

ROUTINGS = ("balanced", "skewed", "one")


def zipf_shares(num_experts: int) -> Tensor:
    """Shares of tokens that prefer expert 1, 2, ...: proportional to 1 / (rank + 1), [E] in double precision.

    The Zipf-Mandelbrot law with offset 1: of eight experts the busiest gets 2.2 times its fair share, 4.5 times that of
    the idlest.  Without the offset the first of three experts would get more than half.  A router without a bias cannot
    do that when tokens point in all directions alike.
    """
    weight = 1 / torch.arange(2, num_experts + 2, dtype=torch.float64)
    return weight / weight.sum()


@torch.no_grad()
def set_routing(weight: Tensor, routing: str) -> None:
    """Overwrite a fresh router weight [E, D] so that tokens pointing in all directions alike are routed as named.

    one: all logits are equal, and then the experts of the lowest numbers win.
    skewed: rows lie in a plane, at the corners of a polygon around the origin.  A token prefers the corner farthest in
    its direction.  These directions make up the corner's exterior angle, the expert's share of the circle.  With top-k,
    the next choices are the corners beside it, which evens loads out; so the busiest experts are neighbours.  Two
    experts always share evenly, because a plane through the origin separates them.
    """
    if routing == "one":
        weight.zero_()
    elif routing == "skewed" and weight.shape[0] > 2:
        around = [*reversed(range(1, weight.shape[0], 2)), *range(0, weight.shape[0], 2)]  # ... 3 1 0 2 4 ...
        share = zipf_shares(weight.shape[0])[around]
        angle = 2 * math.pi * (share.cumsum(0) - share / 2)
        radius = 1 / (math.pi * share).cos()  # the sides touch the unit circle
        corner = radius[:, None] * torch.stack((angle.cos(), angle.sin()), dim=1)
        plane = torch.linalg.qr(weight[:2].double().cpu().t()).Q  # [D, 2], orthonormal
        weight[around] = (corner @ plane.t()).to(weight)
    elif routing not in ROUTINGS:
        raise ValueError(f"routing is {routing!r}; allowed: {', '.join(ROUTINGS)}")
