"""The dynamic-k sweep: what a converted network scores and costs over the threshold tau (arXiv 2310.04361).

FLOPs follow what ran: a (token, expert) pair costs 2 x 2 x D x s, the two products of its s neurons, and every row
carries its routers, tau = 0 included, although that row bypasses them.  The row tau = 0 is thus dearer than the dense
layers by the routers, and FLOPs fall with every rise of tau.

Letters in shapes: D model width, s neurons per expert.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from planer.architecture import DynamicMoE, FeedForward
from planer.evaluation.quality import quality
from planer.models import LanguageModel


def thresholds(taus: Iterable[float]) -> list[float]:
    """The thresholds of a sweep: rising, each once, and always 0."""
    return sorted({0.0, *taus})


def set_threshold(model: LanguageModel, tau: float) -> None:
    """Let all converted layers run at tau from now on."""
    for block in model.dynamic_blocks():
        block.tau = tau


def score(
    model: LanguageModel, tokens: np.ndarray, tau: float, **protocol
) -> tuple[dict[str, float | int], list[float]]:
    """Quality at one threshold, and the experts that each converted layer executed per token.

    protocol: further arguments of ``quality``.  The experts cover all text read, the uncounted context of the streams
    included.  Leaves the model at tau = 0.
    """
    set_threshold(model, tau)
    try:
        with _counting(model) as layers:
            result = quality(model, tokens, **protocol)
    finally:
        set_threshold(model, 0.0)
    return result, [layer.per_token() for layer in layers]


@dataclass
class _Count:
    """Executed (token, expert) pairs of one layer; summed as tensors, so that a pass waits for no device."""

    executed: torch.Tensor | int = 0
    tokens: int = 0

    def add(self, block: torch.nn.Module, inputs: object, output: object) -> None:
        self.executed = self.executed + block.executed
        self.tokens += block.tokens

    def per_token(self) -> float:
        return float(self.executed) / self.tokens


@contextmanager
def _counting(model: LanguageModel) -> Iterator[list[_Count]]:
    """Counts of every converted layer, kept up to date by forward hooks."""
    blocks = model.dynamic_blocks()
    counts = [_Count() for _ in blocks]
    hooks = [block.register_forward_hook(count.add) for block, count in zip(blocks, counts, strict=True)]
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()


def converted_flops(layers: Sequence[DynamicMoE], experts_per_token: Sequence[float], d_model: int) -> float:
    """FLOPs per token of converted layers that execute so many experts per token: their pairs and their routers."""
    return sum(
        experts * 4 * d_model * layer.expert_size + 2 * layer.router_width * (d_model + layer.num_experts)
        for layer, experts in zip(layers, experts_per_token, strict=True)
    )


def dense_flops(layers: Sequence[DynamicMoE], d_model: int) -> float:
    """FLOPs per token of the same layers before conversion."""
    return sum(FeedForward(layer.d_inner).flops(d_model, 1, 1, 0, "cached") for layer in layers)


def sweep(
    model: LanguageModel,
    splits: Mapping[str, np.ndarray],
    taus: Iterable[float],
    dense_network_flops: float,
    **protocol,
) -> Iterator[dict]:
    """Score every split at every threshold; yield one row a threshold, in rising order.

    splits: valid and test; FLOPs and experts are those of test.  dense_network_flops: FLOPs per token of the whole
    network before conversion.  A network without converted layers has the row tau = 0 only.
    """
    d_model = model.architecture.d_model
    layers = [block for block in model.architecture.blocks if isinstance(block, DynamicMoE)]
    dense = dense_flops(layers, d_model)
    for tau in thresholds(taus) if layers else [0.0]:
        scores = {
            name: score(model, tokens, tau, **protocol, description=f"tau {tau:g}, {name}")
            for name, tokens in splits.items()
        }
        experts = scores["test"][1]
        flops = converted_flops(layers, experts, d_model)
        yield {
            "tau": tau,
            **{name: result for name, (result, _) in scores.items()},
            "converted_flops": flops,
            "converted_flops_ratio": flops / dense if layers else None,
            "network_flops": dense_network_flops - dense + flops,
            "experts_per_token": sum(experts) / len(experts) if layers else None,
            "experts_per_layer": experts,
        }


def choose_threshold(rows: Sequence[Mapping], dense: Mapping, tolerance: float) -> dict | None:
    """The threshold with the fewest FLOPs that keeps the quality, beside the dense network and beside tau = 0.

    rows: of ``sweep``, in rising order from tau = 0, with the latency of each.  dense: valid, test and latency of the
    network before sparsification, measured in turn with the rows.  A threshold keeps the quality when its validation
    nll is at most tolerance worse than that of the better of the two; the test split has no say.  Returns its tau, its
    test nll over that of both, and how many times as fast as the dense network it is; None when there is no such
    threshold above 0.
    """
    reference = min(dense["valid"]["nll"], rows[0]["valid"]["nll"])
    kept = [row for row in rows if row["tau"] > 0 and row["valid"]["nll"] <= (1 + tolerance) * reference]
    if not kept:
        return None
    chosen = min(kept, key=lambda row: row["converted_flops"])
    return {
        "tau": chosen["tau"],
        "nll_over_dense": chosen["test"]["nll"] / dense["test"]["nll"],
        "nll_over_tau0": chosen["test"]["nll"] / rows[0]["test"]["nll"],
        "speed_up_over_dense": dense["latency"]["median_ms"] / chosen["latency"]["median_ms"],
    }


def timed_at(model: LanguageModel, call: Callable[[], None], taus: Iterable[float]) -> dict[str, Callable[[], None]]:
    """For every threshold, by its text, a function that makes this call of the model at it."""

    def at(tau: float) -> Callable[[], None]:
        def run() -> None:
            set_threshold(model, tau)
            call()

        return run

    return {str(tau): at(tau) for tau in taus}
