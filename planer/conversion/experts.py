"""Splitting trained feed-forward layers into experts, exactly.

D2DMoE (arXiv 2310.04361, section 3.2), after MoEfication (arXiv 2110.01786, section 3.2): neurons whose input weights
point the same way are active on the same tokens.  The rows of W1, scaled to unit norm, are clustered by k-means into
groups of equal size, and each group becomes an expert.  Nothing is approximated: with W1, b1 and W2 permuted alike,

    sum_c W2_c relu(W1_c x + b1_c) + b2  =  W2 relu(W1 x + b1) + b2

Letters in shapes: D model width, F neurons, n experts, s = F / n neurons per expert.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from planer.config import ClusterConfig
from planer.models import LanguageModel
from planer.progress import progress
from planer.seed import derive_seed


def cluster_neurons(w1: Tensor, expert_size: int, seed: int, restarts: int, max_iterations: int) -> np.ndarray:
    """Group neurons by the direction of their input weights, expert_size in every group.

    w1: [F, D].  restarts: k-means initialisations, of which the most compact result is kept.  max_iterations: rounds of
    assignment (a min-cost flow, which keeps the sizes equal) and averaging in each.
    Returns labels [F] int64 in 0 .. F / expert_size - 1.  The same seed gives the same labels.  A row of zeros has no
    direction and counts as the origin.  Raises ValueError when expert_size does not divide F.
    """
    neurons = w1.shape[0]
    if expert_size < 1 or neurons % expert_size:
        raise ValueError(f"expert_size is {expert_size}; it must divide the number of neurons, {neurons}")
    if expert_size == 1:
        return np.arange(neurons)
    # Imported here because OR-Tools below it takes most of a second, and only this function needs it.
    from k_means_constrained import KMeansConstrained

    kmeans = KMeansConstrained(
        n_clusters=neurons // expert_size,
        size_min=expert_size,
        size_max=expert_size,
        n_init=restarts,
        max_iter=max_iterations,
        random_state=seed,
    )
    return kmeans.fit_predict(_directions(w1)).astype(np.int64)


def _directions(w1: Tensor) -> np.ndarray:
    """Rows of w1 scaled to unit norm, float64 [F, D]."""
    rows = w1.detach().double().cpu().numpy()
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)


def scatter(w1: Tensor, labels: np.ndarray) -> float:
    """How loose a clustering is: squared distances of directions to their group's mean, over those to the mean of all.

    0 when all neurons of a group point the same way; a random grouping of many neurons gives about (s - 1) / s.
    """
    directions = _directions(w1)
    order = np.argsort(labels, kind="stable").reshape(labels.max() + 1, -1)
    groups = directions[order]
    total = np.square(directions - directions.mean(axis=0)).sum()
    within = np.square(groups - groups.mean(axis=1, keepdims=True)).sum()
    return float(within / total) if total else 0.0


@torch.no_grad()
def split(model: LanguageModel, config: ClusterConfig, seed: int) -> tuple[LanguageModel, pd.DataFrame, dict]:
    """Put experts that compute the same function in the place of every feed-forward layer, and of every MLP of an
    attention.

    Inside an expert neurons keep their order.  The layers have no routers, and run all experts.

    Returns a new model, in eval mode and on the model's device; the labels (columns layer: position of the block,
    neuron, expert, and where projections were replaced projection: null in feed-forward layers); and the metrics
    ``converted_layers`` and ``scatter_<layer>``, with names as of ``of_layers``.  A network without feed-forward layers
    comes back as it is; its metrics say so.
    Raises ValueError when expert_size does not divide the neurons of a layer.
    """
    architecture = model.architecture
    layers = [(name, module) for name, module in model.named_modules() if getattr(module, "splits", False)]
    if not layers:
        empty = pd.DataFrame({name: pd.Series(dtype="int64") for name in ("layer", "neuron", "expert")})
        reason = f"{architecture.pattern} has no feed-forward layer that could be split into experts"
        return model, empty, {"converted_layers": 0, "reason": reason}

    blocks = tuple(spec.split(config.expert_size) if spec.splits else spec for spec in architecture.blocks)
    converted = LanguageModel(dataclasses.replace(architecture, blocks=blocks))
    weights = model.state_dict()
    tables, metrics = [], {"converted_layers": len(layers)}
    for path, layer in progress(layers, "cluster_experts"):
        _, position, _, *projection = path.split(".")  # blocks.0.sublayer.query
        name, (up, down) = "_".join([position, *projection]), layer.linears
        layer_seed = derive_seed(seed, "cluster_experts", name)
        labels = cluster_neurons(up.weight, config.expert_size, layer_seed, config.restarts, config.max_iterations)
        order = torch.from_numpy(np.argsort(labels, kind="stable")).to(up.weight.device)
        weights = {key: value for key, value in weights.items() if not key.startswith(f"{path}.")}
        weights |= {f"{path}.w1": up.weight[order], f"{path}.b1": up.bias[order]}
        weights |= {f"{path}.w2": down.weight.t()[order], f"{path}.b2": down.bias}
        table = {"layer": int(position), "neuron": np.arange(len(labels)), "expert": labels}
        tables.append(pd.DataFrame(table | ({"projection": projection[0]} if projection else {})))
        metrics[f"scatter_{name}"] = scatter(up.weight, labels)
    converted.load_state_dict(weights)
    return converted.to(up.weight.device).eval(), pd.concat(tables, ignore_index=True), metrics
