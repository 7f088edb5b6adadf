"""Grouping the neurons of a pretrained network's feed-forward layers into experts.

The result is a table: layer (name of the site), neuron, expert.  No weight changes until ``apply_labels``.
Neurons are described by

- their input weights, of a gated layer those of the gate (D2DMoE, arXiv 2310.04361, section 3.2), or
- their activations |h_j| over calibration tokens, scaled to unit norm and reduced to RANK dimensions by a truncated
  singular value decomposition.  The norm of w2_j, by which a neuron's activations reach the output, cancels in the
  scaling.

Letters in shapes: N tokens, D model width, F neurons.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from planer.config import ClusterConfig
from planer.conversion.experts import cluster_neurons, scatter
from planer.conversion.recording import typical_passes
from planer.conversion.sites import FeedForwardSite, feed_forward_sites
from planer.errors import UserError
from planer.progress import progress
from planer.seed import derive_seed
from planer.tasks.pretrained_task import PretrainedTask

RANK = 64
"""Dimensions of reduced activation profiles."""
OVERSAMPLED = 16
"""Further dimensions of the random projection (Halko et al. 2011, section 4.2: 5 to 10 suffice)."""
WORTH_PROCESSES = 10**9
"""Distances times dimensions of all layers from which processes share them: about 30 s, and one takes 3 s to start."""


def cluster_sites(
    model: nn.Module, task: PretrainedTask, config: ClusterConfig, seed: int
) -> tuple[pd.DataFrame, dict[str, float]]:
    """Group the neurons of every layer, config.expert_size in each expert.

    config: with ``features`` and ``tokens``, as the section cluster_experts of a pretrained experiment.  The task's
    training samples are read for activations only.
    Returns the labels, and the metrics converted_layers and scatter_<site> (``experts.scatter`` of the features).
    The same seed gives the same labels, on any number of threads.  Raises UserError when the expert size does not
    divide the neurons of a layer, before any work.
    """
    sites = feed_forward_sites(model)
    for site in sites:
        if site.d_inner % config.expert_size:
            raise UserError(
                f"expert_size is {config.expert_size}; it must divide the neurons of {site.name}, "
                f"which are {site.d_inner}"
            )
    if config.features == "weights":
        features = [_weights(site) for site in sites]
    else:
        features = activation_profiles(model, task, config.tokens, derive_seed(seed, "cluster_experts", "tokens"))
    calls = []
    for site, rows in zip(sites, features, strict=True):
        layer_seed = derive_seed(seed, "cluster_experts", site.name)
        calls.append((rows.numpy(), config.expert_size, layer_seed, config.restarts, config.max_iterations))
    tables, metrics = [], {"converted_layers": len(sites)}
    for site, rows, experts in zip(sites, features, _all_clustered(calls), strict=True):
        tables.append(pd.DataFrame({"layer": site.name, "neuron": np.arange(len(experts)), "expert": experts}))
        metrics[f"scatter_{site.name}"] = scatter(rows, experts)
    return pd.concat(tables, ignore_index=True), metrics


def _weights(site: FeedForwardSite) -> Tensor:
    weights = site.weights()
    return (weights.w1 if weights.gate is None else weights.gate).detach().float().cpu()


def activation_profiles(model: nn.Module, task: PretrainedTask, tokens: int, seed: int) -> list[Tensor]:
    """Of every layer, unit vectors of |h_j| over random training tokens in at most RANK dimensions: [F, rank]."""
    collected: dict[str, list[Tensor]] = {}
    for recorder, typical in typical_passes(model.eval(), task, "train", tokens, seed):
        for site, seen in recorder.take():
            collected.setdefault(site.name, []).append(seen.h[typical].abs().float().cpu())
    return [_reduced(torch.cat(parts), derive_seed(seed, name)) for name, parts in collected.items()]


def _reduced(magnitudes: Tensor, seed: int) -> Tensor:
    """Unit profiles of magnitudes [N, F] in their first principal directions through the origin: [F, rank]."""
    profiles = nn.functional.normalize(magnitudes.T, dim=1)
    if min(profiles.shape) <= RANK:
        u, s, _ = torch.linalg.svd(profiles, full_matrices=False)
        return u * s
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        u, s, _ = torch.svd_lowrank(profiles, min(RANK + OVERSAMPLED, *profiles.shape), niter=4)
    return (u * s)[:, :RANK].contiguous()


def _all_clustered(calls: list[tuple]) -> list[np.ndarray]:
    """Labels of every layer.  calls: the arguments of cluster_neurons, rows as arrays."""
    work = sum(rows.size * rows.shape[0] // size for rows, size, *_ in calls)
    workers = min(len(calls), torch.get_num_threads())
    if workers == 1 or work < WORTH_PROCESSES:
        return [_clustered(*call) for call in progress(calls, "cluster_experts")]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        running = [pool.submit(_clustered, *call) for call in calls]
        return [one.result() for one in progress(running, "cluster_experts")]


def _clustered(rows: np.ndarray, *options) -> np.ndarray:
    return cluster_neurons(torch.from_numpy(rows), *options)


def apply_labels(model: nn.Module, labels: pd.DataFrame) -> None:
    """Sort the neurons of every feed-forward layer by expert, which changes the network's results by rounding only.

    Inside an expert neurons keep their order.  The same labels must not be applied twice: neurons count in the order
    that they had when the labels were made.
    Raises UserError when the table does not name every neuron of the network's layers once.
    """
    sites = feed_forward_sites(model)
    tables = dict(iter(labels.groupby("layer", sort=False)))
    for site in sites:
        table = tables.pop(site.name, None)
        if table is None or sorted(table["neuron"]) != list(range(site.d_inner)):
            raise UserError(f"labels do not name each of the {site.d_inner} neurons of {site.name} once; cluster again")
    if tables:
        raise UserError(f"labels name {next(iter(tables))}, which the network lacks; cluster again")
    for site in sites:
        experts = labels[labels["layer"] == site.name].sort_values("neuron")["expert"].to_numpy()
        order = torch.from_numpy(np.argsort(experts, kind="stable"))
        site.reorder(order.to(site.weights().w1.device))
