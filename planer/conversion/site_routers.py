"""Training the routers of a pretrained network's split layers, all at once, by what the frozen network computes.

    norm         mean over tokens, experts of (R(x)_c - t_c)^2     t_c = ||E_c(x)||, the norm of the expert's output
                 (D2DMoE, arXiv 2310.04361, eq. 3)
    moefication  binary cross-entropy of R(x)_c with S_c / max S   the maximum over tokens and experts of the batch
                 (MoEfication, arXiv 2110.01786, as D2DMoE's section 4 trains it)

S_c sums the activations h_j of the expert's neurons.  That supposes ReLU; where activations may be negative, S_c sums
|h_j| ||w2_j||.
In decoders the first token of a sample has norms hundreds of times larger than others, which would rule the squared
error and the maximum: t_c and S_c are at most the largest of the batch's other tokens, where there are any.
Padding is left out.
Letters in shapes: N tokens, D model width, F neurons, n experts.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planer.conversion.assessment import ASSESSED_TOKENS, Assessment
from planer.conversion.dynamic import DynamicFeedForward, dynamic_layers, set_selector
from planer.conversion.norms import expert_norms
from planer.conversion.recording import FrozenPasses, Recorder, Seen, typical_passes, typical_tokens
from planer.conversion.routers import initialise_routers
from planer.conversion.selectors import ALL, quantiles_of, score_quantiles
from planer.conversion.sites import FeedForwardSite
from planer.runtime import Runtime
from planer.tasks.pretrained_task import PretrainedTask
from planer.tasks.task import MAIN, Metrics, Result
from planer.training.finetune import check_pace
from planer.training.loop import Record, StepGroup, fit
from planer.training.loss import StepLoss
from planer.training.optimizer import make_optimizer
from planer.training.terms import Term

if TYPE_CHECKING:
    from planer.config.pretrained import SiteRouterConfig

CALIBRATED_TOKENS = 4_096
"""Training tokens that quantiles of scores are taken from."""
TOP_SHARE = 0.2
"""Share of the experts by which routers of both targets are compared (MoEfication, section 3.3: 20 % of n)."""


class SiteRouterRegression(Term):
    """Fits the routers of all split layers to their targets.

    The history has ``loss``, the mean over layers, and ``loss_<site>``.
    """

    def __init__(self, model: nn.Module, task: PretrainedTask):
        """Everything of the model but its routers is frozen; its layers run all their experts."""
        model.requires_grad_(False)
        set_selector(model, ALL)
        self.model, self.task = model, task
        self._layers = {layer.name: layer for layer in dynamic_layers(model)}
        for layer in self._layers.values():
            layer.router.requires_grad_(True)
        self._grams = {name: layer.gram() for name, layer in self._layers.items()}
        self._recorder = Recorder(model)

    def watching(self) -> AbstractContextManager[Recorder]:
        """Record the inputs and activations of all passes inside the context."""
        return self._recorder.recording()

    def __call__(self, result: Result, batch: Any, step: int) -> tuple[Tensor, Metrics]:
        """See Term."""
        real = self.task.real(batch)
        others = typical_tokens(self.model, self.task, batch)[real]
        metrics: Metrics = {}
        for site, seen in self._recorder.take():
            layer = self._layers[site.name]
            scores, target = layer.router(seen.x[real]), self.target(site, seen, real)
            if others.any():
                target = target.clamp(max=target[others].max())
            if layer.target == "norm":
                metrics[f"loss_{site.name}"] = (scores - target).square().mean()
            else:
                share = target / target.max().clamp(min=torch.finfo(target.dtype).tiny)  # all may be 0
                metrics[f"loss_{site.name}"] = F.binary_cross_entropy_with_logits(scores, share)
        return torch.stack(list(metrics.values())).mean(), metrics

    @torch.no_grad()
    def target(self, site: FeedForwardSite, seen: Seen, tokens: Tensor) -> Tensor:
        """t_c, or S_c, of some tokens [B, T]: [N, n], in at least single precision."""
        layer, h = self._layers[site.name], seen.h[tokens]
        if layer.target == "norm":
            return expert_norms(h, self._grams[site.name])
        return active_sums(layer, site, h)


def active_sums(layer: DynamicFeedForward, site: FeedForwardSite, h: Tensor) -> Tensor:
    """S_c of the module's text: h [N, F] to [N, n]."""
    h = h.to(torch.promote_types(h.dtype, torch.float32))
    if site.gated or site.activation != "relu":
        h = h.abs() * site.weights().w2.to(h).norm(dim=-1)
    return h.unflatten(-1, (layer.num_experts, -1)).sum(-1)


def train_site_routers(
    model: nn.Module, task: PretrainedTask, config: SiteRouterConfig, runtime: Runtime, record: Record
) -> tuple[pd.DataFrame, dict[str, float]]:
    """Train the routers of a network that ``make_dynamic`` made, from fresh weights or from the checkpoint.

    Routers have been made with config.width and config.target.  Nothing else of the network changes but the quantiles
    of its layers, which are calibrated.  It ends in eval mode.
    Returns the history, and the metrics on validation samples:

    - converted_layers, and those of ``training.loop.fit``
    - captured_top_20: sum of the targets t_c or S_c of the 20 % best-scored experts, over the largest sum that as many
      experts have; mean over layers, and captured_top_20_<site>
    - of the target norm: those of ``Assessment``, means over layers, and r2_<site>

    The caller deletes the checkpoint when it has written the results.
    """
    routers, regression = _start(model, task, runtime)
    optimizer = make_optimizer(routers.parameters(), config.optimizer)
    groups = {MAIN: StepGroup(optimizer, config.optimizer, config.steps)}
    with regression.watching():
        passes = FrozenPasses(model, task)
        history, speed = fit(routers, passes, [regression], groups, runtime, config, record)
    metrics = assess(model, regression)
    calibrate(model, task, CALIBRATED_TOKENS, runtime.derive("train_routers", "calibration"))
    model.requires_grad_(True)
    return history, {"converted_layers": len(routers), **metrics, **speed}


def check_router_hours(
    model: nn.Module, task: PretrainedTask, config: SiteRouterConfig, runtime: Runtime, max_hours: float
) -> None:
    """Time a few steps of train_site_routers.  Raises UserError when it would take longer than max_hours at their pace.

    Nothing of the network changes but the routers, which train_site_routers initialises anew.
    """
    routers, regression = _start(model, task, runtime)
    with regression.watching():
        loss = StepLoss(routers, FrozenPasses(model, task), [regression], runtime)
        check_pace(lambda step: loss.backward(step)[0], task, config, runtime, max_hours)
    routers.zero_grad(set_to_none=True)
    model.requires_grad_(True)


def _start(model: nn.Module, task: PretrainedTask, runtime: Runtime) -> tuple[nn.ModuleList, SiteRouterRegression]:
    """The routers with fresh weights, and their regression; the network is in eval mode on the device."""
    model.to(runtime.device).eval()
    routers = nn.ModuleList(layer.router for layer in dynamic_layers(model))
    initialise_routers(routers, runtime.generator("train_routers", "initialisation"))
    return routers.eval(), SiteRouterRegression(model, task)


@torch.no_grad()
def assess(model: nn.Module, regression: SiteRouterRegression) -> dict[str, float]:
    """Compare every router with its targets on validation samples; see train_site_routers."""
    layers = {layer.name: layer for layer in dynamic_layers(model)}
    assessments = {name: Assessment() for name, layer in layers.items() if layer.target == "norm"}
    captured = {name: torch.zeros(2, dtype=torch.float64) for name in layers}
    for recorder, typical in typical_passes(model, regression.task, "valid", ASSESSED_TOKENS, 0):
        for site, seen in recorder.take():
            scores, target = layers[site.name].router(seen.x[typical]), regression.target(site, seen, typical)
            captured[site.name] += _captured(scores, target)
            if site.name in assessments:
                assessments[site.name].add(scores, target)
    shares = {name: float(kept / best) if best > 0 else 1.0 for name, (kept, best) in captured.items()}
    metrics = {"captured_top_20": sum(shares.values()) / len(shares)}
    metrics |= {f"captured_top_20_{name}": share for name, share in shares.items()}
    if not assessments:
        return metrics
    table = pd.DataFrame({name: one.metrics() for name, one in assessments.items()}).T
    return metrics | table.mean().to_dict() | {f"r2_{name}": r2 for name, r2 in table["r2"].items()}


def _captured(scores: Tensor, target: Tensor) -> Tensor:
    """Sums over tokens of the targets of the best experts, by scores and by targets: [2]."""
    count = max(1, round(TOP_SHARE * scores.shape[1]))
    kept = target.gather(1, scores.topk(count).indices).sum(dtype=torch.float64)
    return torch.stack((kept, target.topk(count).values.sum(dtype=torch.float64))).cpu()


@torch.no_grad()
def calibrate(model: nn.Module, task: PretrainedTask, tokens: int, seed: int) -> None:
    """Fill the quantiles of router scores and of true norms, which ``absolute`` needs, from random training samples.

    The oracle's are not saved: calibrate again before it is evaluated.  All layers run all their experts afterwards.
    """
    set_selector(model, ALL)
    layers = {layer.name: layer for layer in dynamic_layers(model)}
    grams = {name: layer.gram() for name, layer in layers.items()}
    scores: dict[str, list[Tensor]] = {name: [] for name in layers}
    norms: dict[str, list[Tensor]] = {name: [] for name in layers}
    for recorder, typical in typical_passes(model.eval(), task, "train", tokens, seed):
        for site, seen in recorder.take():
            scores[site.name].append(layers[site.name].router(seen.x[typical]))
            norms[site.name].append(expert_norms(seen.h[typical], grams[site.name]))
    for name, layer in layers.items():
        layer.quantiles.copy_(score_quantiles(torch.cat(scores[name])))
        layer.norm_quantiles.copy_(quantiles_of(torch.cat(norms[name])))
