"""The start of a supernet from the weights of a trained network, the parent."""

from __future__ import annotations

import torch

from planer.search.supernet import Supernet
from planer.training.parent_start import Parent, copy_embedding_and_head, start_block, start_norm


@torch.no_grad()
def start_supernet(supernet: Supernet, parent: Parent) -> None:
    """Overwrite the weights of an initialised supernet: every option starts like a network with this option.

    Options that share weights are started once.  Where attention options share heads, the heads are in falling order of
    importance.  Experts that several mixtures share are copies of the parent's neurons, without a divisor.
    """
    copy_embedding_and_head(supernet, parent)
    for position, block in enumerate(supernet.blocks):
        for number, (option, owner) in enumerate(zip(block.options, block.owners, strict=True)):
            spec = supernet.specs[number]
            if owner == number:
                start_block(option, spec, position, parent, by_importance=block.owners.count(number) > 1)
            elif not spec.identity:
                start_norm(option, position, parent)
