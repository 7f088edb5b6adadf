"""The common parts of all blocks: the residual sum, its LayerNorm, and the positions of a segment.

Letters in shapes: B sequences, T tokens of the segment, M remembered positions, K = M + T keys, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Aux = dict[str, Tensor]
"""Further outputs of a block, those that the segment wants and the block has (of attention with MLPs, those of each
under the name with ``_query``, ``_key``, ``_value`` or ``_output`` behind it, see ``of_layers``):

- balance: load-balancing loss of a mixture of experts, a scalar; only in training
- load: tokens that each expert of a mixture received, [E]
- activations: of a dense feed-forward layer after its nonlinearity, [B, T, F]
- inputs: what a converted layer reads, [B, T, D]
- executed: (token, expert) pairs that a converted layer ran, a scalar
"""

Wants = tuple[str, ...]
"""Names of entries of ``Aux``.  A tuple, because torch.compile knows no frozenset."""


def of_layers(aux: Iterable[Aux], name: str) -> dict[str, Tensor]:
    """What the layers of all blocks handed on under a name, by the position of the block and the end of the layer's
    name: ``1``, ``0_query``."""
    return {
        f"{position}{key.removeprefix(name)}": value
        for position, entries in enumerate(aux)
        for key, value in entries.items()
        if key.partition("_")[0] == name
    }


@dataclass(frozen=True)
class Segment:
    """Positions of one forward pass, made once by the model and read by every attention block.

    positions: [K, D] sinusoids, row k for distance K-1-k, one dropout mask for all blocks.
    mask: [T, K], what is added to the scores: 0 where query i sees key j, else -inf.  (A sum, because masked_fill with
        a broadcast mask took 0.62 ms where this takes 0.05 ms: scores [16, 8, 64, 128], float32, 2 Cascade Lake cores.)
    memory_len: M, the remembered positions present: the last ones of a memory, which may hold more.
    mem_len: the most positions that may be remembered, at least M.
    attention: ``recompute`` (memory holds block inputs) or ``cached`` (memory holds keys and values; inference only).
    wants: names of further outputs of blocks (``Aux``).
    """

    positions: Tensor
    mask: Tensor
    memory_len: int
    mem_len: int
    attention: str
    wants: Wants = ()


@dataclass(frozen=True)
class Source:
    """The source of a block's initial weights: a trained network, the parent, seen from the block's position."""

    nearest: Block | None
    """The parent's nearest block of the kind that weights are taken from (``starts_from`` of the specification)."""
    importance: Tensor | None
    """Result of ``importance`` of that block."""
    same_place: Block | None
    """The parent's block at the same position, of any kind."""
    inputs: Tensor
    """[N, D], the inputs of the parent's block at this position, or of its last one."""
    same_spec: Block | None = None
    """The parent's nearest block of the same specification."""

    @property
    def copied(self) -> Block | None:
        """The block that a sparse layer copies: of the same specification, and at the same position unless the parent
        has nothing else to start from."""
        return self.same_spec if self.same_spec is self.same_place or self.nearest is None else None


class Block(nn.Module):
    """A position-wise sublayer with its residual and LayerNorm.

    Post-norm is LN(x + sublayer(x)), the Transformer-XL default; pre-norm is x + sublayer(LN(x)).
    """

    uses_memory = False
    lookback = 0
    """Positions before the remembered ones in its memory of block inputs, for layers that look back."""
    compiles = True
    """Whether torch.compile may compile it."""

    def __init__(self, sublayer: nn.Module, d_model: int, norm: str):
        super().__init__()
        if norm not in ("post", "pre"):
            raise ValueError(f"norm is {norm!r}; allowed: post, pre")
        self.sublayer = sublayer
        self.norm = nn.LayerNorm(d_model)
        self.pre_norm = norm == "pre"

    def forward(self, x: Tensor, segment: Segment, state=None) -> tuple[Tensor, object, Aux]:
        """x: [B, T, D].  Returns the block's output, its state for the next segment (here None: it has no
        memory), and its further outputs."""
        if self.pre_norm:
            y, aux = self.run(self.norm(x), segment.wants)
            return x + y, None, aux
        y, aux = self.run(x, segment.wants)
        return self.norm(x + y), None, aux

    def run(self, x: Tensor, wants: Wants) -> tuple[Tensor, Aux]:
        """The sublayer's output [B, T, D], and its further outputs."""
        return self.sublayer(x), {}

    def start(self, source: Source, by_importance: bool = False, noise: Callable[[Tensor], None] | None = None) -> None:
        """Take the sublayer's weights from a parent; the LayerNorm is already set.

        by_importance: order parts by their importance, since smaller options of a supernet use the first ones.
        noise: adds noise to a weight, for weights that would be copies of each other.
        Weights keep their random values where the parent has no source of the same shapes.
        """
        if source.nearest is None:
            return
        weights, other = self.sublayer.state_dict(), source.nearest.sublayer.state_dict()
        if {name: w.shape for name, w in weights.items()} == {name: w.shape for name, w in other.items()}:
            self.sublayer.load_state_dict(other)

    def importance(self, run: Callable[[], Tensor], output: Tensor) -> Tensor | None:
        """How much each part of the block matters; None for a block without parts.

        run: gives the block's output with its weights as they are now; output: what it gives with its own.
        """
        return None

    def share(self, owner: Block) -> None:
        """Use the weights of a larger block of the same kind, all but the LayerNorm."""
        raise NotImplementedError

    def rerouted(self, change: Callable[[Tensor], None]) -> Block:
        """The block with a changed router weight [E, D], on the same experts; the block itself where it has none."""
        return self


def set_weight(parameter: Tensor, value: Tensor) -> None:
    """Overwrite a weight.  Raises ValueError for a value of another shape."""
    if parameter.shape != value.shape:
        raise ValueError(f"a weight of shape {tuple(value.shape)} does not fit {tuple(parameter.shape)}")
    parameter.copy_(value)


def repeated(parts: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """This many parts, from the first again after the last, and one over how often each part occurs among them."""
    numbers = torch.arange(count, device=parts.device) % len(parts)
    return parts[numbers], 1 / numbers.bincount()[numbers]
