"""Which options of a position share weights.

With uniform samples, an option is trained in one step of N.  Sharing trains it more often.  Attention with fewer heads
uses the first heads of the attention with the most heads (weight entanglement of AutoFormer, arXiv 2107.00651).
Mixtures of experts share the experts and have separate routers.  Every option has a separate LayerNorm.
"""

from __future__ import annotations

from collections.abc import Sequence

from planer.specs import BlockSpec


def owners(options: Sequence[BlockSpec], weight_sharing: str) -> list[int]:
    """For every option the number of the option whose weights it uses: itself, or the largest option of its kind."""
    found = list(range(len(options)))
    for number, spec in enumerate(options):
        if weight_sharing in spec.shared_under:
            same = [other for other, option in enumerate(options) if option.kind == spec.kind]
            found[number] = max(same, key=lambda other: options[other].size)
    return found
