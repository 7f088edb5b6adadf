"""The blocks that a latency table holds.  Every parse of the Snakefile imports this module, so it needs no PyTorch."""

from __future__ import annotations

from types import SimpleNamespace

from planer.specs import Attention, BlockSpec, FeedForward, from_notation


def measured_options(config: SimpleNamespace) -> tuple[BlockSpec, ...]:
    """Blocks of all design spaces and of the patterns, and the full-size ones, each once; skip is not among them."""
    model = config.model
    blocks = [model.option(name) for name in config.design_space] + config.search_methods.options(model)
    for pattern in config.patterns.named.values():
        blocks += from_notation(pattern, model.symbols())
    blocks += [Attention(model.num_heads, model.d_head), FeedForward(model.d_inner)]
    return tuple(block for block in dict.fromkeys(blocks) if not block.identity)
