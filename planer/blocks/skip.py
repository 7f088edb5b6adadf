"""A position without a block."""

from __future__ import annotations

from torch import Tensor, nn

from planer import specs
from planer.blocks.block import Aux, Block, Segment


class SkipBlock(Block):
    """The bare identity: no residual sum and no LayerNorm."""

    compiles = False

    def __init__(self):
        nn.Module.__init__(self)

    def forward(self, x: Tensor, segment: Segment, state=None) -> tuple[Tensor, None, Aux]:
        """Returns x itself."""
        return x, None, {}


def build(spec: specs.Skip, shared: specs.Architecture) -> SkipBlock:
    return SkipBlock()
