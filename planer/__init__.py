"""Transformers that use less compute: searched with measured latencies, trained, and split into small experts.

import planer
network = planer.load("results/demo/target_0.5/routers")
print(network.generate("def main(", tokens=200, temperature=0.8, seed=1))
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from planer.models.network import Network
    from planer.pretrained.network import PretrainedNetwork

__all__ = ["load"]


def load(folder: str | Path, device: str = "cpu", vocab: str | Path | None = None) -> Network | PretrainedNetwork:
    """Read a trained network, ready to generate text: one of ours, or a decoder in transformers' classes.

    folder: of a stage or an export (``planer.models.network.load``), or one that ``save_pretrained`` wrote.  device:
    auto, cpu, cuda or cuda:<number>.  vocab: the vocab.json of its text, where one of our networks has none.
    Raises UserError when the folder holds no such network, or a file is damaged or does not fit.
    """
    # Imported here: the workflow imports planer and must not load PyTorch.
    from planer.models import network
    from planer.pretrained.folder import is_pretrained

    if not is_pretrained(folder):
        return network.load(folder, device, vocab)
    from planer.pretrained.network import load

    return load(folder, device)
