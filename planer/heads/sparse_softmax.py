"""A softmax whose logits are a multiplicative layer (Sparse is Enough, arXiv 2111.12763): few weights are read a token.

    logits[s V / S + m] = sum over i of h[i] scales[s, i] shared[i, m] + bias

S modules predict V / S consecutive words each.  The weights are the head's own: they are not tied with the embedding.

Letters in shapes: N rows, D model width, V vocabulary, S modules.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from planer.errors import UserError
from planer.heads.softmax import Softmax
from planer.initial import Draw, glorot_uniform, normal
from planer.parsing import Range

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class SparseSoftmax(Softmax):
    modules: Annotated[int, Range(1, 2**24)]
    kind: ClassVar[str] = "sparse_softmax"

    def check(self, vocab_size: int, d_model: int) -> None:
        if vocab_size % self.modules:
            raise UserError(f"model.head.modules: {self.modules} must divide the number of symbols, {vocab_size:,}")

    def tensors(self, vocab_size: int, d_model: int) -> dict[str, tuple[int, ...]]:
        weights = {"scales": (self.modules, d_model), "shared": (d_model, vocab_size // self.modules)}
        return weights | {"bias": (vocab_size,)}

    def initial(self) -> dict[str, Draw]:
        """See HeadSpec.  As in trax."""
        return {"scales": normal(0.5), "shared": glorot_uniform}

    def logits(self, head: nn.Module, hidden: Tensor) -> Tensor:
        return head.multiplicative(hidden, head.scales, head.shared, head.bias)
