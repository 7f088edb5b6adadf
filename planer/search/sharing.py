"""Which options of a position use the same weights.

Sampled uniformly, an option is trained in one step of N.  Sharing trains it more often: attention with fewer heads uses
the first heads of the attention with the most (weight entanglement of AutoFormer, arXiv 2107.00651), and mixtures of
experts the same experts behind routers of their own.  Every option keeps its own LayerNorm.
"""

from __future__ import annotations

from collections.abc import Sequence

from planer.architecture import Attention, BlockSpec, MoE

SHARED: dict[str, tuple[type[BlockSpec], ...]] = {"all": (Attention, MoE), "heads": (Attention,), "none": ()}
"""Kinds of blocks that share weights, by ``search.weight_sharing``."""


def owners(options: Sequence[BlockSpec], weight_sharing: str) -> list[int]:
    """For every option the number of the option whose weights it uses: its own, or that of the attention with the most
    heads and of the mixture with the largest top_k."""
    found = list(range(len(options)))
    for kind in SHARED[weight_sharing]:
        same = [number for number, spec in enumerate(options) if isinstance(spec, kind)]
        for number in same:
            found[number] = max(same, key=lambda i: options[i].num_heads if kind is Attention else options[i].top_k)
    return found
