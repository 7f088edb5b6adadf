"""Calibration of thresholds on the neurons of a pretrained network, for wanted mean shares of neurons that run.

One pass over typical tokens gives a histogram of the scores of each layer.  A threshold is a quantile of it, which a
few giant activations do not move.  Allocations of a mean share to the layers:

- ``uniform``: the same share in each layer.
- ``greedy`` (as TEAL, arXiv 2408.14690, section 4.3, with measured losses): from all neurons, step by step, the layer
  whose next step loses the least for the products that it saves.  The loss of a layer is the Kullback-Leibler
  divergence of the network's predictions when only this layer has a threshold.  It is measured at one share and
  scaled to others by the squared output that the layer drops.  The nll itself changes less than
  its noise when one layer has a threshold.

Letters in shapes: N tokens, F neurons.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planer.conversion.passes import block_of, recording, returning
from planer.conversion.recording import Seen, is_decoder, typical_passes
from planer.conversion.sites import FeedForwardSite, feed_forward_sites
from planer.conversion.threshold_layer import apply_thresholds, output_norms
from planer.kernels.activations import activate
from planer.progress import progress
from planer.seed import derive_seed
from planer.tasks.pretrained_task import Batch, PretrainedTask

if TYPE_CHECKING:
    from planer.config.pretrained import NeuronThresholdConfig

BINS = 2**15
"""Of a histogram: scores as bfloat16 truncates them, which are at most 0.8 % apart."""
MEASURED_SHARE = 0.5
"""Share of the neurons with a score over 0 at which the loss of a layer is measured."""
LOSS_TOKENS = 1 / 4
"""Share of the calibration tokens on which losses are measured, since each layer needs a pass over them."""
STEPS = 32
"""Of the greedy allocation, from all neurons of a layer to none."""


@dataclass(frozen=True)
class Thresholds:
    """Calibrated thresholds of a network, the contents of thresholds.json."""

    score: str
    thetas: Mapping[float, Mapping[str, float]]
    """By the wanted mean share of neurons, then by the name of the layer."""
    densities: Mapping[float, Mapping[str, float]]
    """Measured shares of the neurons that run, by the same keys."""

    def to_json(self) -> dict:
        """Keys of a JSON object are texts."""
        tables = {"thetas": self.thetas, "densities": self.densities}
        return {"score": self.score} | {
            key: {str(share): dict(layers) for share, layers in table.items()} for key, table in tables.items()
        }

    @classmethod
    def from_json(cls, values: dict) -> Thresholds:
        """Inverse of to_json()."""
        thetas, densities = (
            {float(share): layers for share, layers in values[key].items()} for key in ("thetas", "densities")
        )
        return cls(values["score"], thetas, densities)


def calibrate(model: nn.Module, task: PretrainedTask, config: NeuronThresholdConfig, seed: int) -> Thresholds:
    """Find the thresholds of all layers for each of config.shares, on random training tokens.

    model: in transformers' classes, in eval mode on the task's device, its layers not converted.  It computes the same
    afterwards.  The same seed gives the same thresholds.
    """
    curves = score_curves(model, task, config, derive_seed(seed, "thresholds", "tokens"))
    if config.allocation == "greedy":
        losses = layer_losses(model, task, config, curves, derive_seed(seed, "thresholds", "losses"))
        shares = {share: greedy_shares(curves, losses, share) for share in config.shares}
    else:
        shares = {share: dict.fromkeys(curves, share) for share in config.shares}
    thetas = {share: {name: curves[name].theta(own) for name, own in of.items()} for share, of in shares.items()}
    densities = {share: {name: curves[name].density(own) for name, own in of.items()} for share, of in shares.items()}
    return Thresholds(config.score, thetas, densities)


class Curve:
    """Of one layer, the shares of its neurons and of its squared output that scores over a threshold have."""

    def __init__(self) -> None:
        self._neurons = torch.zeros(BINS, dtype=torch.float64)
        self._squares = torch.zeros(BINS, dtype=torch.float64)

    def add(self, scores: Tensor, squares: Tensor) -> None:
        """Count the neurons of some tokens.  scores: not negative.  squares: of what each adds to y.  Both [N, F]."""
        bins = (scores.float().contiguous().view(torch.int32) >> 16).flatten().long()
        self._neurons += torch.bincount(bins, minlength=BINS).cpu()
        self._squares += torch.bincount(bins, squares.flatten().double(), minlength=BINS).cpu()

    def theta(self, share: float) -> float:
        """The least threshold that at most this share of the neurons is over; 0 where zeros alone stay under it."""
        index = self._bin(share)
        if index <= 1:  # the first bin has zeros, and scores below 1e-40
            return 0.0
        return float(torch.tensor(index << 16, dtype=torch.int32).view(torch.float32))

    def density(self, share: float) -> float:
        """The share of neurons that is over theta(share); zeros are never."""
        return float(self._neurons[max(1, self._bin(share)) :].sum() / self._neurons.sum())

    def dropped(self, share: float) -> float:
        """Share of the squared output, taken neuron by neuron, that is not over theta(share)."""
        return float(self._squares[: self._bin(share)].sum() / self._squares.sum().clamp(min=1e-300))

    @property
    def counted(self) -> float:
        """Neurons of all tokens together; layers of a network see the same tokens."""
        return float(self._neurons.sum())

    @property
    def active(self) -> float:
        """Share of the neurons whose score is over 0."""
        return 1 - float(self._neurons[0] / self._neurons.sum())

    def _bin(self, share: float) -> int:
        over = self._neurons.flip(0).cumsum(0).flip(0)  # neurons in this bin or a higher one
        return int((over > share * over[0]).sum())


def score_curves(model: nn.Module, task: PretrainedTask, config: NeuronThresholdConfig, seed: int) -> dict[str, Curve]:
    """The curve of every layer, by name, over random training tokens."""
    norms = {site.name: output_norms(site) for site in feed_forward_sites(model)}
    curves = {name: Curve() for name in norms}
    for recorder, typical in typical_passes(model.eval(), task, "train", config.tokens, seed):
        for site, seen in recorder.take():
            added = seen.h[typical].float().abs() * norms[site.name]
            scores = added if config.score == "product" else _gate_scores(site, seen, typical)
            curves[site.name].add(scores, added.square())
    return curves


def _gate_scores(site: FeedForwardSite, seen: Seen, typical: Tensor) -> Tensor:
    """|g_j| of typical tokens, or |h_j| where there is no gate: [N, F]."""
    return (activate(seen.z[typical], site.activation) if site.gated else seen.h[typical]).float().abs()


@torch.inference_mode()
def layer_losses(
    model: nn.Module, task: PretrainedTask, config: NeuronThresholdConfig, curves: Mapping[str, Curve], seed: int
) -> dict[str, float]:
    """What the network loses by a threshold in one layer, by name: nats over the share of squared output dropped.

    KL(dense || thresholded), a mean over the tokens of random texts, or over samples that have one label.
    A pass begins at the layer's block: what is before it does not change.
    """
    layers = apply_thresholds(model, dict.fromkeys(curves, 0.0), config.score)
    places = {layer.name: block_of(model, layer.name) for layer in layers}
    blocks, _ = places[layers[0].name]
    shares = {name: MEASURED_SHARE * curve.active for name, curve in curves.items()}
    totals, counted = dict.fromkeys(curves, 0.0), 0
    for batch in _sampled(model, task, config.tokens * LOSS_TOKENS, seed):
        with recording(blocks) as results:
            expected = _log_probs(model, task, batch)
        counted += len(expected)
        probabilities = expected.exp()
        for layer in progress(layers, "thresholds"):
            layer.set_theta(curves[layer.name].theta(shares[layer.name]))
            _, first = places[layer.name]
            with returning(blocks[:first], results[:first]):
                found = _log_probs(model, task, batch)
            totals[layer.name] += float((probabilities * (expected - found)).sum())
            layer.set_theta(0.0)
    dropped = {name: max(curve.dropped(shares[name]), 1e-12) for name, curve in curves.items()}
    return {name: max(total, 0.0) / counted / dropped[name] for name, total in totals.items()}


def _sampled(model: nn.Module, task: PretrainedTask, tokens: float, seed: int) -> Iterator[Batch]:
    """Random training samples until they have this number of tokens; texts one by one, since their logits are large."""
    order, size = np.random.default_rng(seed).permutation(task.size("train")), task.eval_batch
    for samples in np.array_split(order, range(1, len(order)) if is_decoder(model) else range(size, len(order), size)):
        batch = task.on_device(task.collate("train", samples))
        yield batch
        tokens -= int(task.real(batch).sum())
        if tokens <= 0:
            return


def _log_probs(model: nn.Module, task: PretrainedTask, batch: Batch) -> Tensor:
    """Log-probabilities that the network predicts, [tokens or samples, V]."""
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    with task.runtime.autocast():
        logits = model(**inputs, **({"use_cache": False} if is_decoder(model) else {})).logits
    return F.log_softmax((logits[task.real(batch)] if logits.ndim == 3 else logits).float(), dim=-1)


def greedy_shares(curves: Mapping[str, Curve], losses: Mapping[str, float], share: float) -> dict[str, float]:
    """Shares of neurons by layer, whose mean over the neurons of all layers is ``share``.

    MLPs in the place of projections have fewer neurons than other layers: a step saves products in proportion to them.
    """
    levels = 1 - np.arange(STEPS + 1) / STEPS
    names, taken = list(curves), np.zeros(len(curves), dtype=int)
    loss = np.array([[losses[name] * curves[name].dropped(level) for level in levels] for name in names])
    sizes = np.array([curves[name].counted for name in names])
    steps = np.concatenate((np.diff(loss) / sizes[:, None], np.full((len(names), 1), np.inf)), axis=1)
    while np.average(levels[taken], weights=sizes) > share + 1e-9:
        taken[steps[range(len(names)), taken].argmin()] += 1
    return dict(zip(names, levels[taken].tolist(), strict=True))
