"""Tiny converted networks of every family of transformers, with random routers or made-up thresholds."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from planer.conversion.dynamic import make_dynamic
from planer.conversion.hub import mark
from planer.conversion.neuron_threshold import Thresholds
from planer.conversion.selectors import score_quantiles
from planer.conversion.sites import feed_forward_sites
from planer.conversion.stored import build, describe_experts, describe_thresholds
from tests.unit.tiny_pretrained import WIDTH, tiny
from tests.unit.toy import ROOT

EXPERT_SIZE, ROUTER_WIDTH = 4, 8


def converted(family: str) -> nn.Module:
    """A tiny network of six experts in each layer, which all run."""
    return split(tiny(family))


def split(model: nn.Module) -> nn.Module:
    """Split a network into experts of EXPERT_SIZE neurons with random routers; all experts run."""
    generator = torch.Generator().manual_seed(3)
    for layer in make_dynamic(model, EXPERT_SIZE, ROUTER_WIDTH):
        with torch.no_grad():
            for weight in layer.router.parameters():
                weight.normal_(generator=generator)
            layer.quantiles.copy_(score_quantiles(layer.router(torch.randn(99, WIDTH, generator=generator))))
    mark(model, describe_experts(model))
    return model


def thresholded(family: str) -> nn.Module:
    """A tiny network with thresholds for shares of 0.5 and 0.25, different in every layer; all neurons run.

    The measured densities are made up: the share, and twice the share in the second layer.
    """
    model = tiny(family)
    names = [site.name for site in feed_forward_sites(model)]
    thetas = {share: {name: (i + 1) / share for i, name in enumerate(names)} for share in (0.5, 0.25)}
    densities = {share: {name: (i + 1) * share for i, name in enumerate(names)} for share in thetas}
    description = describe_thresholds(model, Thresholds("product", thetas, densities))
    build(model, description)
    mark(model, description)
    return model


def run_card(folder: Path) -> None:
    """Assert that the code of a folder's model card runs in a new Python process."""
    (lines,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    code = lines.replace('"PATH"', repr(str(folder)))
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert code.startswith("import planer.pretrained\n") and run.returncode == 0, run.stderr
