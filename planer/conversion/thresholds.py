"""The threshold tau of a converted network: its value, its executed experts, and its choice on validation text.

Letters in shapes: D model width, s neurons per expert.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
from torch import Tensor

from planer.blocks.block import of_layers
from planer.config import ThresholdConfig
from planer.models import LanguageModel
from planer.models.transformer import Output
from planer.runtime import Runtime
from planer.specs import BlockSpec
from planer.tasks.nll import Protocol, Watch, mean_nll


def final_protocol(config: ThresholdConfig) -> Protocol:
    """E-final, the headline: every token has the same long context, so that the result does not depend on tgt_len."""
    return Protocol(config.batch, config.tgt_len, config.mem_len, config.clamp_len, same_length=True)


def thresholds(taus: Iterable[float]) -> list[float]:
    """The thresholds of a sweep: rising, each once, and always 0."""
    return sorted({0.0, *taus})


def threshold_of(model: LanguageModel) -> float:
    """The tau that architecture.yaml stores for the network; 0 for one without converted layers."""
    return max((spec.tau for spec in model.architecture.blocks if spec.dynamic), default=0.0)


def set_threshold(model: LanguageModel, tau: float) -> None:
    """Run all converted layers at tau from now on.  The stored threshold does not change."""
    for block in model.dynamic_blocks():
        block.tau = tau


def store_threshold(model: LanguageModel, tau: float) -> None:
    """Let all converted layers run at tau, now and whenever the network is loaded after it was saved."""
    blocks = tuple(dataclasses.replace(spec, tau=tau) if spec.dynamic else spec for spec in model.architecture.blocks)
    model.architecture = dataclasses.replace(model.architecture, blocks=blocks)
    set_threshold(model, tau)


class Executed(Watch):
    """Counts the (token, expert) pairs that converted layers run; as tensors, so that a pass waits for no device."""

    wants = ("executed",)

    def __init__(self) -> None:
        self._pairs: dict[str, Tensor] = {}
        self._tokens = 0

    def __call__(self, output: Output) -> None:
        """See Watch."""
        self._tokens += output.hidden[..., 0].numel()
        for name, pairs in of_layers(output.aux, "executed").items():
            self._pairs[name] = self._pairs.get(name, 0) + pairs

    def per_token(self) -> list[float]:
        """Experts that each converted layer executed per token."""
        return [float(pairs) / self._tokens for pairs in self._pairs.values()]


@contextmanager
def running_at(model: LanguageModel, tau: float) -> Iterator[None]:
    """Run the converted layers at tau inside the context."""
    before = [block.tau for block in model.dynamic_blocks()]
    set_threshold(model, tau)
    try:
        yield
    finally:
        for block, value in zip(model.dynamic_blocks(), before, strict=True):
            block.tau = value


def converted_flops(
    blocks: Sequence[BlockSpec], experts_per_token: Sequence[float], d_model: int, reads: float = 1.0
) -> float:
    """FLOPs per token of the layers of converted blocks: their (token, expert) pairs and their routers.

    experts_per_token: of each layer.  reads: as of BlockSpec.layers.
    A pair costs 2 x 2 x D x s, the two products of its s neurons.
    """
    layers = [layer for block in blocks for layer in block.layers(reads).values()]
    return sum(
        (experts * 4 * d_model * layer.expert_size + 2 * layer.router_params(d_model)) * passes
        for (layer, passes), experts in zip(layers, experts_per_token, strict=True)
    )


def nll_name(tau: float) -> str:
    """The metric that holds the validation nll at a threshold."""
    return f"valid_nll_tau_{tau}"


class ThresholdChoice:
    """Chooses tau by the final protocol on validation text, for a network that was converted from a dense one.

    Scores the dense network at once, so that a text that is too short is refused before the routers are trained.
    """

    def __init__(self, dense: LanguageModel, tokens: np.ndarray, config: ThresholdConfig, runtime: Runtime) -> None:
        """dense: the network before sparsification.  tokens: validation text, [N]."""
        self._tokens, self._config, self._runtime = tokens, config, runtime
        self._dense_nll = self._nll(dense.to(runtime.device), "dense network")

    def __call__(self, model: LanguageModel) -> dict[str, float]:
        """Store the chosen tau in a converted network; return it and the validation nll at every threshold.

        A network without converted layers is left as it is.
        """
        if not model.dynamic_blocks():
            return {}
        blocks = [spec for spec in model.architecture.blocks if spec.dynamic]
        rows = []
        for tau in thresholds(self._config.taus):
            executed = Executed()
            with running_at(model, tau):
                nll = self._nll(model, f"tau {tau:g}", executed)
            flops = converted_flops(blocks, executed.per_token(), model.architecture.d_model)
            rows.append({"tau": tau, "nll": nll, "flops": flops})
        tau = choose_threshold(rows, self._dense_nll, self._config.tolerance)
        store_threshold(model, tau)
        return {"tau": tau, **{nll_name(row["tau"]): row["nll"] for row in rows}}

    def _nll(self, model: LanguageModel, network: str, watch: Watch | None = None) -> float:
        options = {"description": f"choice of tau, {network}", "watch": watch}
        return mean_nll(model, self._tokens, final_protocol(self._config), self._runtime, **options)[0]


def choose_threshold(rows: Sequence[Mapping[str, float]], dense_nll: float, tolerance: float) -> float:
    """The threshold with the fewest FLOPs that keeps the quality; 0, which executes all experts, when none does.

    rows: tau, nll and flops, in rising order from tau = 0.  A threshold keeps the quality when its nll is at most
    tolerance worse than that of the better of two: the dense network before sparsification, and tau = 0.
    """
    reference = min(dense_nll, rows[0]["nll"])
    kept = [row for row in rows if row["tau"] > 0 and row["nll"] <= (1 + tolerance) * reference]
    return min(kept, key=lambda row: row["flops"])["tau"] if kept else 0.0
