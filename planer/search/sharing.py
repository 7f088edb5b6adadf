"""Which options of a position use the same weights.

Sampled uniformly, an option is trained in one step of N.  Sharing trains it more often: attention with fewer heads uses
the first heads of the attention with the most (weight entanglement of AutoFormer, arXiv 2107.00651), and mixtures of
experts the same experts behind routers of their own.  Every option keeps its own LayerNorm.
"""

from __future__ import annotations

from collections.abc import Sequence

from planer.specs import BlockSpec


def owners(options: Sequence[BlockSpec], weight_sharing: str) -> list[int]:
    """For every option the number of the option whose weights it uses: its own, or that of the largest of its kind."""
    found = list(range(len(options)))
    for number, spec in enumerate(options):
        if weight_sharing in spec.shared_under:
            same = [other for other, option in enumerate(options) if option.kind == spec.kind]
            found[number] = max(same, key=lambda other: options[other].size)
    return found
