"""Rules by which a token selects the experts that it executes, from their scores.

Letters in shapes: N tokens, n experts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from planer.errors import UserError
from planer.kernels.routing import threshold

RULES = ("all", "dynamic_k", "absolute", "top_k", "cumulative")
SCORES = ("router", "oracle", "random")
GRID = 256
"""Steps of the table of quantiles."""


@dataclass(frozen=True)
class Selector:
    """A rule and its value.

    - ``all``: every expert; the layer is dense and runs no router.
    - ``dynamic_k``: score >= value times the token's best score (D2DMoE, arXiv 2310.04361, section 3.3); 0 to 1.
    - ``absolute``: score >= the layer's quantile that the share ``value`` of its scores reach, so that the mean share
      over layers and calibration tokens is the value; above 0, to 1.  A token may select none.
    - ``top_k``: the ``value`` best experts (MoEfication, arXiv 2110.01786, section 3.3); an integer from 1.
    - ``cumulative``: the best experts until their scores add up to the share ``value`` of the sum; above 0, to 1.

    scores: those of the ``router``; the true norms (``oracle``, an upper bound); or uniform ``random`` numbers (a lower
    bound, with ``absolute`` or ``top_k`` at any wanted share).
    Raises UserError for an unknown name and for a value outside the rule's range.
    """

    name: str = "all"
    value: float = 0
    scores: str = "router"

    def __post_init__(self) -> None:
        for given, allowed in ((self.name, RULES), (self.scores, SCORES)):
            if given not in allowed:
                raise UserError(f"selector: {given!r} is unknown; allowed: {', '.join(allowed)}")
        lowest = {"dynamic_k": "0", "absolute": "above 0", "cumulative": "above 0"}.get(self.name)
        if lowest and not (0 <= self.value <= 1 and (self.value > 0 or lowest == "0")):
            raise UserError(f"selector: {self.name} of {self.value:g}; allowed: {lowest} to 1")
        if self.name == "top_k" and (self.value < 1 or self.value != int(self.value)):
            raise UserError(f"selector: top_k of {self.value:g}; allowed: integers from 1")

    def mask(self, scores: Tensor, theta: float) -> Tensor:
        """Which experts run: scores [N, n] to [N, n] bool.

        theta: the layer's threshold (``share_threshold``); only ``absolute`` reads it.
        A score that is NaN lets its expert run; for dynamic_k and cumulative, all experts of the token.
        """
        match self.name:
            case "all":
                return torch.ones_like(scores, dtype=torch.bool)
            case "dynamic_k":
                return threshold(scores, self.value)
            case "absolute":
                return (scores < theta).logical_not_()
            case "top_k":
                best = scores.topk(int(self.value), dim=-1).indices
                return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, best, True)
        ordered, order = scores.sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(-1) - ordered
        enough = before >= self.value * ordered.sum(-1, keepdim=True)
        enough &= before > 0  # the best expert runs, and all of a token whose scores are all zero
        return torch.empty_like(enough).scatter_(1, order, enough).logical_not_()


ALL = Selector()


@torch.no_grad()
def quantiles_of(scores: Tensor) -> Tensor:
    """Quantiles 0, 1 / GRID, ..., 1 of scores of any shape: [GRID + 1] in single precision."""
    ordered = scores.flatten().float().sort().values
    places = torch.linspace(0, len(ordered) - 1, GRID + 1, dtype=torch.float64, device=ordered.device).round().long()
    return ordered[places]


def share_threshold(quantiles: Tensor, share: float) -> float:
    """The score that this share of scores reaches, interpolated; a share of 1 gives minus infinity.

    Raises UserError when the quantiles were never filled.
    """
    if quantiles.isnan().any():
        raise UserError("selector: absolute needs quantiles of the scores; calibrate the network first")
    if share == 1:
        return -math.inf
    place = (1 - share) * GRID
    low = int(place)
    return float(torch.lerp(quantiles[low], quantiles[min(low + 1, GRID)], place - low))


@torch.no_grad()
def score_quantiles(scores: Tensor) -> Tensor:
    """What the rules compare with their values, over calibration tokens: scores [N, n] to quantiles [3, GRID + 1].

    Rows: the scores; their ratios to the token's best; and the share of the token's sum that better experts have.
    """
    ordered = scores.float().sort(dim=-1, descending=True).values
    ratios = (ordered / ordered[:, :1]).nan_to_num(1.0)
    better = ((ordered.cumsum(-1) - ordered) / ordered.sum(-1, keepdim=True)).nan_to_num(0.0)
    return torch.stack([quantiles_of(values) for values in (scores, ratios, better)])


def expected_share(selector: Selector, quantiles: Tensor, num_experts: int) -> float:
    """Share of a layer's experts that a selector runs per calibration token, to 1 / GRID.

    quantiles: score_quantiles of the layer; NaN before the calibration, which gives NaN for the rules that need them.
    """
    match selector.name:
        case "all":
            return 1.0
        case "absolute":
            return selector.value
        case "top_k":
            return selector.value / num_experts
    row = quantiles[1 if selector.name == "dynamic_k" else 2].double()
    if row.isnan().any():
        return math.nan
    below = float((row < selector.value).double().mean())
    return 1 - below if selector.name == "dynamic_k" else below
