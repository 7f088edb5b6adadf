"""The dynamic-k sweep: what a converted network scores and costs over the threshold tau (arXiv 2310.04361).

FLOPs follow what ran.  Every row carries its routers, tau = 0 included, although that row bypasses them.  The row
tau = 0 is thus dearer than the dense layers by the routers, and FLOPs fall with every rise of tau.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np

from planer.conversion.thresholds import Executed, converted_flops, running_at, set_threshold, thresholds
from planer.evaluation.quality import quality
from planer.models import LanguageModel
from planer.runtime import Runtime
from planer.specs import BlockSpec
from planer.tasks.nll import Protocol


def score(
    model: LanguageModel, tokens: np.ndarray, tau: float, protocol: Protocol, runtime: Runtime
) -> tuple[dict[str, float | int], list[float]]:
    """Quality at one threshold, and the experts that each converted layer executed per token.

    The experts cover all text read, the uncounted context of the streams included.
    """
    executed = Executed()
    with running_at(model, tau):
        result = quality(model, tokens, protocol, runtime, description=f"tau {tau:g}", watch=executed)
    return result, executed.per_token()


def dense_flops(blocks: Sequence[BlockSpec], d_model: int, reads: float = 1.0) -> float:
    """FLOPs per token of what the layers of converted blocks were before.  reads: as of BlockSpec.layers."""
    return sum(block.unconverted_flops(d_model, reads) for block in blocks)


def sweep(
    model: LanguageModel,
    test: np.ndarray,
    taus: Iterable[float],
    dense_network_flops: float,
    protocol: Protocol,
    runtime: Runtime,
    reads: float = 1.0,
) -> Iterator[dict]:
    """Score the test split at every threshold; yield one row a threshold, in rising order.

    dense_network_flops: FLOPs per token of the whole network before conversion.  A network without converted layers
    has the row tau = 0 only.  reads: as of BlockSpec.layers, of the workload that FLOPs are of.
    """
    d_model = model.architecture.d_model
    blocks = [block for block in model.architecture.blocks if block.dynamic]
    dense = dense_flops(blocks, d_model, reads)
    for tau in thresholds(taus) if blocks else [0.0]:
        result, experts = score(model, test, tau, protocol, runtime)
        flops = converted_flops(blocks, experts, d_model, reads)
        yield {
            "tau": tau,
            "test": result,
            "converted_flops": flops,
            "converted_flops_ratio": flops / dense if blocks else None,
            "network_flops": dense_network_flops - dense + flops,
            "experts_per_token": sum(experts) / len(experts) if blocks else None,
            "experts_per_layer": experts,
        }


def compare_threshold(rows: Sequence[Mapping], tau: float, dense: Mapping) -> dict | None:
    """The threshold that the network runs at, beside the dense network and beside tau = 0; None when it is 0.

    rows: of ``sweep``, with the latency of each.  dense: test and latency of the network before sparsification,
    measured in turn with the rows.  Returns tau, its test nll over that of both, and how many times as fast as the
    dense network it is.
    """
    if tau == 0:
        return None
    chosen = next(row for row in rows if row["tau"] == tau)
    return {
        "tau": tau,
        "nll_over_dense": chosen["test"]["nll"] / dense["test"]["nll"],
        "nll_over_tau0": chosen["test"]["nll"] / rows[0]["test"]["nll"],
        "speed_up_over_dense": dense["latency"]["median_ms"] / chosen["latency"]["median_ms"],
    }


def timed_at(model: LanguageModel, call: Callable[[], None], taus: Iterable[float]) -> dict[str, Callable[[], None]]:
    """For every threshold, by its text, a function that makes this call of the model at it."""

    def at(tau: float) -> None:
        set_threshold(model, tau)
        call()

    return {str(tau): partial(at, tau) for tau in taus}
